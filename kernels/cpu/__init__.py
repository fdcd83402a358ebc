"""The C++ kernels. library.py loads them; each operation has a module of its own."""
