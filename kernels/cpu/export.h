// Marks what the Python side calls.
#pragma once

#if defined(_WIN32)
#define IRM_EXPORT extern "C" __declspec(dllexport)
#else
#define IRM_EXPORT extern "C" __attribute__((visibility("default")))
#endif
