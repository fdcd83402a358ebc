"""The argument structs of the C++ kernels: every field lies where the library has it, or the library is refused."""

from __future__ import annotations

import pytest

library = pytest.importorskip("irm_fast.kernels.cpu.library", exc_type=ImportError)
from irm_fast.kernels.cpu import implicit_rm, linear_implicit_rm, pointwise  # noqa: E402

LAYOUTS = {
    "irm_implicit_rm": implicit_rm.FIELDS,
    "irm_linear_implicit_rm": (
        *(f"loss.{field}" for field in implicit_rm.FIELDS),
        *linear_implicit_rm.HEADS_FIELDS,
    ),
    "irm_linear_hidden_grad": linear_implicit_rm.HIDDEN_GRAD_FIELDS,
    "irm_pointwise": pointwise.FIELDS,
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_fields_that_are_exchanged_are_refused(name: str) -> None:
    """Each neighbouring pair in turn: all fields have 8 bytes, so that the size tells nothing."""
    fields = LAYOUTS[name]
    _, packer = library.bind(name, fields)
    assert packer.size == 8 * len(fields)
    for k in range(len(fields) - 1):
        exchanged = [*fields[:k], fields[k + 1], fields[k], *fields[k + 2 :]]
        with pytest.raises(ImportError) as error:
            library.bind(name, exchanged)
        message = str(error.value)
        assert repr(fields[k + 1]) in message and "install again" in message
        assert f"at byte {8 * k} in this package" in message and f"at byte {8 * (k + 1)} in the library" in message


@pytest.mark.parametrize("name", LAYOUTS)
def test_fields_that_one_side_lacks_are_refused(name: str) -> None:
    fields = LAYOUTS[name]
    with pytest.raises(ImportError, match=f"{fields[-1]}.* and is missing in this package"):
        library.bind(name, fields[:-1])
    with pytest.raises(ImportError, match="'new' is missing in the library"):
        library.bind(name, (*fields, "new"))


def test_a_function_that_the_library_lacks_is_refused() -> None:
    with pytest.raises(ImportError, match=r"no function irm_nothing.*install again"):
        library.bind("irm_nothing", ())
