// Where the fields of an argument struct lie, for the Python side, which packs them by name (library.py).
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace irm {

struct Field {
  const char* name;  // null after the last
  int64_t offset;    // in bytes
  int64_t is_double;
};

}  // namespace irm

// One entry for a field of `Struct`; a field within a field is written with a dot.
#define IRM_FIELD(field) \
  irm::Field{#field, offsetof(Struct, field), std::is_same<double, decltype(static_cast<Struct*>(nullptr)->field)>::value},

// The layout of `type`, exported as NAME_layout. `fields` is a macro that calls its argument with every field.
#define IRM_EXPORT_LAYOUT(name, type, fields) \
  IRM_EXPORT const irm::Field* name##_layout() { \
    using Struct = type; \
    static const irm::Field kFields[] = {fields(IRM_FIELD) irm::Field{nullptr, sizeof(Struct), 0}}; \
    return kFields; \
  }

#define IRM_LOGITS_FIELDS(X, view) X(view.data) X(view.type) X(view.row_stride) X(view.signal_stride)
#define IRM_CODES_FIELDS(X, view) \
  X(view.data) X(view.width) X(view.is_unsigned) X(view.row_stride) X(view.signal_stride)
