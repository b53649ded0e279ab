"""What differs is cut where the packages' own metadata allow it, and never finer."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfline.compare.model import Side
from perfline.environments.making import Contents
from perfline.errors import SearchError
from perfline.search.groups import (
    REST,
    Group,
    Package,
    differences,
    mixed,
    package_groups,
    unswapped,
)
from wheels import unpack, wheel

PYTHON = "3.12.3"
NONE = Contents(PYTHON, {})


def environment(*lines: str) -> dict[str, Package]:
    """``torch 2.12.0: triton==3.7.0, numpy>=1`` is a package, its version and requirements."""
    found = {}
    for line in lines:
        head, _, needs = line.partition(": ")
        name, version, *source = head.split()
        requires = tuple(each.strip() for each in needs.split(",") if each.strip())
        found[name] = Package(name, version, *source, requires=requires)
    return found


def cut(a: dict[str, Package], b: dict[str, Package]) -> dict[str, set[str]]:
    return {group.name: set(group.packages) for group in package_groups(a, b, PYTHON)}


OLD = environment(
    "torch 2.12.0: triton==3.7.0; sys_platform != 'nowhere', nvidia-cublas==13.0, numpy>=1",
    "triton 3.7.0",
    "nvidia-cublas 13.0",
    "transformers 5.23.0: tokenizers<0.23, huggingface-hub>=1, numpy>=1, ruff==0.1; extra == 'dev'",
    "tokenizers 0.22.1: huggingface-hub>=1",
    "huggingface-hub 1.3.0",
    "numpy 2.3.0",
    "ruff 0.1",
    "pytest 8.4.0: pluggy>=1",
    "pluggy 1.6.0",
)
NEW = environment(
    "torch 2.13.0: triton==3.8.0, nvidia-cublas==13.2, numpy>=1",
    "triton 3.8.0",
    "nvidia-cublas 13.2",
    "transformers 5.24.0: tokenizers>=0.23, huggingface-hub>=1, numpy>=1, ruff==0.2; extra=='dev'",
    "tokenizers 0.23.0: huggingface-hub>=1",
    "huggingface-hub 1.4.0",
    "numpy 2.4.0",
    "ruff 0.2",
    "pytest 9.0.0: pluggy>=1",
    "pluggy 1.7.0",
)


def test_what_the_pins_tie_moves_together_and_nothing_else_does():
    assert cut(OLD, NEW) == {
        "torch": {"torch", "triton", "nvidia-cublas"},
        "transformers": {"transformers", "tokenizers"},
        "numpy": {"numpy"},
        REST: {"huggingface-hub", "ruff", "pytest", "pluggy"},
    }
    assert list(cut(OLD, NEW))[:2] == ["torch", "transformers"]
    *_, rest = package_groups(OLD, NEW, PYTHON)
    assert rest.name == REST
    assert [part.name for part in rest.parts] == ["huggingface-hub", "pluggy", "pytest", "ruff"]
    assert [half.name for half in rest.halves] == ["huggingface-hub to pluggy", "pytest to ruff"]
    assert [part.name for part in rest.halves[1].halves] == ["pytest", "ruff"]
    assert rest.halves[1].halves[0].halves == ()


def test_a_group_says_what_changes_its_own_name_first():
    torch = next(package_groups(OLD, NEW, PYTHON))
    assert torch.what[0] == "torch 2.12.0 -> 2.13.0"
    assert torch.what[1:] == ("nvidia-cublas 13.0 -> 13.2", "triton 3.7.0 -> 3.8.0")
    assert "numpy" in torch.near


def test_a_package_that_came_moves_with_what_requires_it():
    a = environment("torch 2.12.0: numpy>=1", "numpy 2.3.0", "idle 1")
    b = environment("torch 2.13.0: numpy>=1, cuda-bindings>=13", "numpy 2.3.0", "cuda-bindings 13")
    assert cut(a, b) == {"torch": {"torch", "cuda-bindings"}, REST: {"idle"}}


def test_a_package_that_went_moves_with_what_required_it():
    a = environment("torch 2.12.0: sympy>=1", "sympy 1.14")
    assert cut(a, environment("torch 2.13.0")) == {"torch": {"torch", "sympy"}}


def test_extras_that_are_asked_for_tie_and_others_do_not():
    ties = "cublas==13.0; extra == 'cublas'"
    a = environment(
        "torch 1: cuda-toolkit[cublas]==13.0", f"cuda-toolkit 13.0: {ties}", "cublas 13.0"
    )
    ties = "cublas==13.2; extra == 'cublas'"
    b = environment(
        "torch 2: cuda-toolkit[cublas]==13.2", f"cuda-toolkit 13.2: {ties}", "cublas 13.2"
    )
    assert cut(a, b) == {"torch": {"torch", "cuda-toolkit", "cublas"}}
    a["torch"], b["torch"] = environment("torch 1")["torch"], environment("torch 2")["torch"]
    assert cut(a, b) == {"torch": {"torch"}, REST: {"cuda-toolkit", "cublas"}}


def test_a_requirement_that_an_environment_breaks_already_ties_nothing():
    a = environment("torch 1: numpy<2", "numpy 2.3")
    assert cut(a, environment("torch 1.1: numpy<2", "numpy 2.4")) == {
        "torch": {"torch"},
        "numpy": {"numpy"},
    }


def test_markers_are_those_of_the_sides_python():
    needs = "numpy==2.3; python_version < '3.13', numpy==9; python_version >= '3.13'"
    a = environment(f"torch 1: {needs}", "numpy 2.3")
    b = environment("torch 2: numpy>=1", "numpy 2.4")
    assert cut(a, b) == {"torch": {"torch", "numpy"}}


def test_a_local_build_differs_by_its_address_or_by_what_is_in_it():
    a, b = environment("torch 2.13.0"), environment("torch 2.13.0 file:///build/torch")
    assert cut(a, b) == {"torch": {"torch"}}
    (group,) = package_groups(a, b, PYTHON)
    assert group.what == ("torch 2.13.0 from an index -> file:///build/torch",)
    one = {"torch": Package("torch", "2.13.0", content="1")}
    other = {"torch": Package("torch", "2.13.0", content="2")}
    assert next(package_groups(one, other, PYTHON)).what == ("torch 2.13.0, built anew",)
    assert cut(one, one) == {}
    assert cut(one, environment("torch 2.13.0")) == {}  # without a RECORD nothing is known


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 5), st.sampled_from(["==", ">=", "<="])),
        max_size=12,
    )
)
def test_any_groups_can_be_swapped_without_breaking_what_held(pins):
    """Whatever the requirements: no choice of groups breaks one that holds in A and in B."""

    def made(version: int) -> dict[str, Package]:
        return {
            f"p{n}": Package(
                f"p{n}",
                str(version),
                requires=tuple(f"p{y}{sign}{version}" for x, y, sign in pins if x == n != y),
            )
            for n in range(6)
        }

    a, b = made(1), made(2)
    groups = list(package_groups(a, b, PYTHON))
    assert sorted(name for group in groups for name in group.packages) == sorted(a)
    for group in groups:
        held = {name: b[name] if name in group.packages else a[name] for name in a}
        for package in held.values():
            for text in package.requires:
                name, sign, version = text[:2], text[2:4], int(text[4:])
                there = int(held[name].version)
                assert {"==": there == version, ">=": there >= version, "<=": there <= version}[
                    sign
                ]


def side(**changes: object) -> Side:
    return Side("baseline", Path("/a/python"), **changes)  # type: ignore[arg-type]


def test_what_a_side_imports_is_a_group_of_its_own(tmp_path: Path):
    held = []
    for version in ("1", "2"):
        folder = tmp_path / version
        for name in ("fast-kernels", "idle"):
            unpack(wheel(tmp_path, name, version), folder)
        found = metadata.distributions(path=[str(folder)])
        held.append(Contents(PYTHON, {each.metadata["Name"]: each for each in found}))
    a = side(imports=("fast_kernels.all",))
    assert [group.name for group in differences(a, a, *held)] == ["fast-kernels", REST]
    assert [group.name for group in differences(side(), side(), *held)] == [REST]


def test_code_variables_settings_and_imports_are_groups_of_their_own():
    a = side(env={"OMP_NUM_THREADS": "4", "SAME": "1"}, settings=(("engine.mode", "default"),))
    b = side(
        ref="v2", env={"SAME": "1", "API_TOKEN": "secret"}, settings=(), imports=("fast_kernels",)
    )
    found = differences(a, b, NONE, NONE)
    assert {group.name: group.what for group in found} == {
        "code": ("code work tree -> v2",),
        "OMP_NUM_THREADS": ("OMP_NUM_THREADS 4 -> unset",),
        "API_TOKEN": ("API_TOKEN unset -> (not recorded)",),
        "engine.mode": ("engine.mode default -> as the case says",),
        "imports": ("imports none -> fast_kernels",),
    }


def test_nothing_that_differs_is_an_error():
    with pytest.raises(SearchError, match="nothing to isolate; name what differs"):
        differences(side(), side(), NONE, NONE)


def test_another_patch_of_python_is_said():
    assert unswapped(NONE, NONE) == ""
    assert unswapped(NONE, Contents("3.12.9", {})) == (
        "Python 3.12.3 -> 3.12.9 is not swapped: all run on A's"
    )


def test_a_mixed_side_has_the_chosen_groups_of_b_and_all_else_of_a():
    a = side(env={"X": "1", "Y": "1"}, settings=(("k", "1"),), install=("torch",))
    b = Side("candidate", Path("/b/python"), "v2", {"X": "2", "Z": "2"}, (("k", "2"),), ("m",))
    asked: list[frozenset[str]] = []

    def swap(names: frozenset[str]) -> Path:
        asked.append(names)
        return Path("/made/python")

    torch = Group("torch", ("",), packages=frozenset({"torch", "triton"}))
    y = Group("Y", ("",), env=frozenset({"Y"}))
    z = Group("Z", ("",), env=frozenset({"Z"}))
    made = mixed(a, b, [torch, y.with_(z)], "candidate", swap)
    assert made == Side("candidate", Path("/made/python"), None, {"X": "1", "Z": "2"}, a.settings)
    assert asked == [{"torch", "triton"}]
    rest = [
        Group("code", ("",), code=True),
        Group("k", ("",), settings=frozenset({"k"})),
        Group("imports", ("",), imports=True),
    ]
    made = mixed(a, b, rest, "baseline", swap)
    assert made == Side("baseline", a.python, "v2", a.env, (("k", "2"),), ("m",))
    assert len(asked) == 1
