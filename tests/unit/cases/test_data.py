"""Data on disk: found where the published cases lay it out, refused when unsafe or not whole."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

import perfline.cases.data
from perfline.cases.case import Case, load_cases
from perfline.cases.data import (
    Located,
    check_weights,
    find_mmlu,
    find_weights,
    locate,
    weights_digest,
)
from perfline.errors import DataError, MissingData

HOME = "llama3_8b_mmlu"
MMLU = f"{HOME}/mmlu_dataset/data"


@pytest.fixture
def case(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Case:
    """llama3-8b, with an empty Hugging Face cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return load_cases(["llama3-8b"])[0]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "root"
    path.mkdir()
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def write_tar(path: Path, *members: tarfile.TarInfo | str) -> None:
    """Write a tar; a member given by its name is a file that holds that name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for entry in members:
            if isinstance(entry, str):
                info, content = tarfile.TarInfo(entry), entry.encode()
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
            else:
                archive.addfile(entry)


AS_DOWNLOADED = ("data/dev/a_dev.csv", "data/test/a_test.csv", "data/README.txt")


def tensor_file(content: bytes = bytes(16), name: str = "w") -> bytes:
    info = {"dtype": "U8", "shape": [len(content)], "data_offsets": [0, len(content)]}
    header = json.dumps({name: info, "__metadata__": {"format": "pt"}}).encode()
    return struct.pack("<Q", len(header)) + header + content


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoint"
    path.mkdir()
    (path / "config.json").write_text('{"model_type": "llama"}')
    (path / "tokenizer.json").write_text("{}")
    (path / "model.safetensors").write_bytes(tensor_file())
    return path


# --- where it is ----------------------------------------------------------------------------------


def test_the_published_layout_is_found(case: Case, root: Path) -> None:
    (root / HOME / "llama3_8b_hf").mkdir(parents=True)
    for split in ("dev", "test"):
        (root / MMLU / split).mkdir(parents=True)

    assert locate(case, root) == Located(root / HOME / "llama3_8b_hf", root / MMLU)


@pytest.mark.parametrize("place", [f"{HOME}/data.tar", "data.tar", f"{MMLU}.tar"])
def test_data_tar_as_downloaded_is_unpacked_once(case: Case, root: Path, place: str) -> None:
    write_tar(root / place, *AS_DOWNLOADED)

    assert find_mmlu(case, root) == root / MMLU
    assert (root / MMLU / "test" / "a_test.csv").read_text() == "data/test/a_test.csv"
    (root / place).write_bytes(b"not read again")
    assert find_mmlu(case, root) == root / MMLU
    assert list(root.rglob(".unpack-*")) == []


@pytest.mark.parametrize("top", [f"{HOME}/", "./", ""])
def test_a_tar_of_the_whole_case_is_unpacked(case: Case, root: Path, top: str) -> None:
    write_tar(
        root / f"{HOME}.tar",
        f"{top}llama3_8b_hf/config.json",
        member(f"{top}llama3_8b_hf/link.json", tarfile.SYMTYPE, "../llama3_8b_hf/config.json"),
        f"{top}mmlu_dataset/data/dev/a_dev.csv",
        f"{top}mmlu_dataset/data/test/a_test.csv",
    )

    located = locate(case, root)

    assert located == Located(root / HOME / "llama3_8b_hf", root / MMLU)
    linked = (located.weights / "link.json").read_text()
    assert linked == f"{top}llama3_8b_hf/config.json"
    assert sorted(p.name for p in root.iterdir()) == [HOME, f"{HOME}.tar"]


def test_the_package_s_own_data_comes_last(
    monkeypatch: pytest.MonkeyPatch, case: Case, tmp_path: Path, root: Path
) -> None:
    packaged = tmp_path / "packaged"
    monkeypatch.setattr(perfline.cases.data, "PACKAGED_DATA", packaged)
    (packaged / HOME / "llama3_8b_hf").mkdir(parents=True)

    assert find_weights(case, root) == packaged / HOME / "llama3_8b_hf"
    assert find_weights(case, None) == packaged / HOME / "llama3_8b_hf"
    (root / HOME / "llama3_8b_hf").mkdir(parents=True)
    assert find_weights(case, root) == root / HOME / "llama3_8b_hf"


def test_absent_data_names_the_command_that_gets_it(case: Case, root: Path) -> None:
    with pytest.raises(MissingData, match="case llama3-8b: no weights at") as caught:
        find_weights(case, root)
    assert caught.value.command == (
        f"hf download meta-llama/Meta-Llama-3-8B --local-dir {root}/{HOME}/llama3_8b_hf"
    )
    said = rf"no MMLU questions at DATA_DIR/{HOME}/\S+ \(DATA_DIR is what --data-dir or PERF"
    with pytest.raises(MissingData, match=f"case llama3-8b: {said}") as caught:
        find_mmlu(case, None)
    assert caught.value.command == (
        "curl -L --create-dirs https://people.eecs.berkeley.edu/~hendrycks/data.tar "
        f"-o DATA_DIR/{HOME}/data.tar"
    )


def test_the_local_hugging_face_cache_is_used(case: Case, root: Path, tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--meta-llama--Meta-Llama-3-8B"
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    (snapshot / "tokenizer.json").write_text("{}")
    blob = repository / "blobs" / "w"  # as the hub keeps them: a link to what may be gone
    blob.parent.mkdir()
    (snapshot / "model.safetensors").symlink_to(blob)

    def lacking() -> str:
        with pytest.raises(MissingData) as caught:
            find_weights(case, root)
        assert str(snapshot) in str(caught.value)
        return caught.value.command.removeprefix("hf download meta-llama/Meta-Llama-3-8B ")

    assert lacking() == "config.json model.safetensors"  # a tokenizer alone is no checkpoint
    blob.write_bytes(tensor_file())
    assert lacking() == "config.json"
    (snapshot / "config.json").write_text("{}")
    assert find_weights(case, root) == snapshot

    blob.unlink()
    index = {"metadata": {}, "weight_map": {"w": "a.safetensors", "v": "b.safetensors"}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    (snapshot / "a.safetensors").write_bytes(tensor_file())
    assert lacking() == "b.safetensors"


def test_a_hub_cache_is_whole_without_what_no_checkpoint_needs(
    case: Case, root: Path, tmp_path: Path
) -> None:
    from huggingface_hub import _tree_cache

    test_the_local_hugging_face_cache_is_used(case, root, tmp_path)
    repository = tmp_path / "hub" / "models--meta-llama--Meta-Llama-3-8B"
    for name in ("b.safetensors", "model.safetensors"):
        (repository / "snapshots" / "abc" / name).unlink(missing_ok=True)
        (repository / "snapshots" / "abc" / name).write_bytes(tensor_file())
    entry = _tree_cache.TreeCacheEntry(size=1, blob_id="f" * 40)
    listed = {"README.md": entry, "original/consolidated.00.pth": entry}
    _tree_cache.write_tree_cache(str(repository), "abc", listed)
    assert find_weights(case, root) == repository / "snapshots" / "abc"


def test_an_explicit_mmlu_directory_is_taken_or_refused(case: Case, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no dev/ and test/"):
        find_mmlu(case, None, tmp_path)
    (tmp_path / "dev").mkdir()
    (tmp_path / "test").mkdir()
    assert find_mmlu(case, None, tmp_path) == tmp_path


# --- tars that are not safe, or not whole ---------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (member("/etc/x"), "member '/etc/x' is absolute or holds '..'"),
        (member("data/../../x"), "member 'data/../../x' is absolute or holds '..'"),
        (member("C:\\x"), r"member 'C:\\x' is absolute"),
        (member("data/s", tarfile.SYMTYPE, "/etc"), "member 'data/s' links to '/etc', outside"),
        (member("data/s", tarfile.SYMTYPE, "../../x"), "member 'data/s' links to '../../x'"),
        (member("data/h", tarfile.LNKTYPE, "../x"), "member 'data/h' links to '../x', outside"),
        (member("data/h", tarfile.LNKTYPE, "/etc/passwd"), "links to '/etc/passwd', outside"),
        (member("data/c", tarfile.CHRTYPE), "member 'data/c' is a device or pipe"),
        (member("data/f", tarfile.FIFOTYPE), "member 'data/f' is a device or pipe"),
    ],
)
def test_an_unsafe_member_is_named_and_nothing_is_unpacked(
    case: Case, root: Path, bad: tarfile.TarInfo, why: str
) -> None:
    write_tar(root / HOME / "data.tar", *AS_DOWNLOADED, bad)

    with pytest.raises(DataError) as caught:
        find_mmlu(case, root)

    assert why.replace(r"\\", "\\") in str(caught.value)
    assert "refused, nothing was unpacked" in str(caught.value)
    assert [p.name for p in root.rglob("*") if p.is_file()] == ["data.tar"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda whole: whole[:700], "is torn or no tar"),
        (lambda whole: b"<html>404</html>" * 100, "is torn or no tar"),
        (lambda whole: b"", "is torn or no tar"),
    ],
    ids=["torn", "no tar", "empty"],
)
def test_a_torn_tar_is_named_and_leaves_nothing(
    case: Case, root: Path, spoil: Callable[[bytes], bytes], message: str
) -> None:
    path = root / HOME / "data.tar"
    write_tar(path, *AS_DOWNLOADED)
    path.write_bytes(spoil(path.read_bytes()))

    with pytest.raises(DataError, match=rf"data\.tar: {message}"):
        find_mmlu(case, root)
    assert [p.name for p in root.rglob("*") if p.is_file()] == ["data.tar"]


def tar_refusal(case: Case, root: Path) -> str:
    with pytest.raises(DataError) as caught:
        find_mmlu(case, root)
    message = str(caught.value)
    assert message.isprintable()  # one line, too
    assert [p.name for p in root.rglob("*") if p.is_file()] == ["data.tar"]
    return message.removeprefix(f"{root / HOME / 'data.tar'}: ")


LAST = 4 * 512  # the third member's header: each member before takes a header and a block


def flipped(whole: bytes, position: int) -> bytes:
    return whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda whole: whole[: LAST + 100],  # inside a header
        lambda whole: whole[:LAST],  # at a member's end
        lambda whole: whole[: LAST + 1024 + 512],  # one block of zeros is no end
        lambda whole: flipped(whole, LAST + 5),
        lambda whole: whole[:LAST] + bytes(512) + whole[LAST + 512 :],
        lambda whole: gzip.compress(whole)[:-8],
        lambda whole: flipped(gzip.compress(whole), -8 % len(gzip.compress(whole))),
        lambda whole: flipped(lzma.compress(whole), 60),
        lambda whole: lzma.compress(whole)[:-20],
    ],
    ids=[
        "inside a header",
        "at a member's end",
        "one block of zeros",
        "a bit of a header",
        "zeros for a header",
        "gzip cut",
        "a bit of gzip",
        "a bit of xz",
        "xz cut",
    ],
)
def test_a_tar_that_is_damaged_late_is_never_unpacked_in_part(
    case: Case, root: Path, spoil: Callable[[bytes], bytes]
) -> None:
    path = root / HOME / "data.tar"
    write_tar(path, *AS_DOWNLOADED)
    path.write_bytes(spoil(path.read_bytes()))

    message = tar_refusal(case, root)
    assert message.startswith("is torn or no tar (")
    assert message.endswith("); fetch it again")


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress], ids=["gzip", "xz"])
def test_a_compressed_tar_is_unpacked(
    case: Case, root: Path, pack: Callable[[bytes], bytes]
) -> None:
    path = root / HOME / "data.tar"
    write_tar(path, *AS_DOWNLOADED)
    path.write_bytes(pack(path.read_bytes()))

    assert (find_mmlu(case, root) / "README.txt").read_text() == "data/README.txt"


def with_pax(**headers: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo("data/x")
    info.pax_headers = headers
    return info


@pytest.mark.parametrize(
    "bad",
    [
        member("data/h", tarfile.LNKTYPE, "data/missing"),
        with_pax(path="data/a\0b"),
        with_pax(mtime="nan"),
        with_pax(mtime="1e300"),
        with_pax(path="a/" * 1500 + "x"),
        with_pax(path="data/a\n\x1b[31mb/../c"),
    ],
)
def test_absurd_members_are_refused_in_one_line(
    case: Case, root: Path, bad: tarfile.TarInfo
) -> None:
    write_tar(root / HOME / "data.tar", *AS_DOWNLOADED, bad)

    assert tar_refusal(case, root).startswith(("is torn or no tar (", "member '"))


def test_a_tar_without_the_questions_is_named(case: Case, root: Path) -> None:
    write_tar(root / HOME / "data.tar", "data/dev/a_dev.csv")
    with pytest.raises(DataError, match=r"data\.tar: holds no directory with dev/ and test/"):
        find_mmlu(case, root)


def test_a_kill_while_unpacking_leaves_nothing_half(
    monkeypatch: pytest.MonkeyPatch, case: Case, root: Path
) -> None:
    write_tar(root / HOME / "data.tar", *AS_DOWNLOADED)

    def killed(archive: tarfile.TarFile, path: str, **_: object) -> None:
        archive.extract("data/dev/a_dev.csv", path, filter="data")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tarfile.TarFile, "extractall", killed)
        with pytest.raises(KeyboardInterrupt):
            find_mmlu(case, root)

    assert not (root / MMLU).exists()
    assert find_mmlu(case, root) == root / MMLU


def test_a_directory_in_the_way_is_named_and_kept(case: Case, root: Path) -> None:
    write_tar(root / HOME / "data.tar", *AS_DOWNLOADED)
    (root / MMLU).mkdir(parents=True)
    (root / MMLU / "mine.txt").write_text("kept")

    with pytest.raises(DataError, match=r"data\.tar: cannot be unpacked to .*not empty"):
        find_mmlu(case, root)
    assert (root / MMLU / "mine.txt").read_text() == "kept"


# --- weights --------------------------------------------------------------------------------------

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


def refusal(checkpoint: Path) -> str:
    with pytest.raises(DataError) as caught:
        check_weights(checkpoint)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(str(checkpoint), "W")


def test_a_whole_checkpoint_passes_in_one_file_or_in_shards(checkpoint: Path) -> None:
    check_weights(checkpoint)
    (checkpoint / "model.safetensors").rename(checkpoint / "model-1.safetensors")
    (checkpoint / "model-2.safetensors").write_bytes(tensor_file(name="v"))
    index = {"metadata": {}, "weight_map": {"w": "model-1.safetensors", "v": "model-2.safetensors"}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    check_weights(checkpoint)

    (checkpoint / "model-2.safetensors").unlink()

    assert refusal(checkpoint) == (
        "W: model-2.safetensors is missing; model.safetensors.index.json names it"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "W/config.json: is not readable JSON: Expecting property name"),
        (b"[]", "W/config.json: holds a list; expected a JSON object"),
        (
            b'{"model_type": "evil", "auto_map": {"AutoModelForCausalLM": "modeling.Evil"}}',
            "W/config.json: 'auto_map' asks for the checkpoint's own code, which is never run, and "
            "transformers has no causal LM 'evil' of its own",
        ),
        (
            b'{"transformers_weights": "other.safetensors"}',
            "W/config.json: 'transformers_weights' names other.safetensors for the weights",
        ),
        (LFS_POINTER, "W/config.json: is a Git LFS pointer, not the file itself"),
    ],
)
def test_a_config_that_cannot_be_used_is_refused(
    checkpoint: Path, content: bytes, message: str
) -> None:
    (checkpoint / "config.json").write_bytes(content)
    assert refusal(checkpoint).startswith(message)


def test_code_of_a_model_that_transformers_has_is_left_aside(checkpoint: Path) -> None:
    set_config(checkpoint, model_type="phi3", auto_map={"AutoModelForCausalLM": "modeling.Phi3"})
    check_weights(checkpoint)


def test_an_adapter_is_refused_with_the_name_of_its_base(checkpoint: Path) -> None:
    adapter = {"peft_type": "LORA", "base_model_name_or_path": "org/base"}
    (checkpoint / "adapter_config.json").write_text(json.dumps(adapter))
    assert refusal(checkpoint).startswith(
        "W/adapter_config.json: makes this an adapter of 'org/base'; merge it into that"
    )


def test_an_index_beside_a_single_file_is_not_read(checkpoint: Path) -> None:
    """As in transformers (tests/unit/engines/test_hf.py): the file it loads is the one checked."""
    before = weights_digest(checkpoint)
    (checkpoint / "model-1.safetensors").write_bytes(tensor_file()[:-1])
    (checkpoint / "model.safetensors.index.json").write_text('{"weight_map": {"w": "gone"}}')
    check_weights(checkpoint)
    assert weights_digest(checkpoint) == before


def test_a_tensor_in_two_shards_is_refused(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / "a.safetensors")
    (checkpoint / "b.safetensors").write_bytes(tensor_file())
    index = {"metadata": {}, "weight_map": {"w": "a.safetensors", "v": "b.safetensors"}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    assert refusal(checkpoint).startswith("W: b.safetensors and a.safetensors both hold w, and")


@pytest.mark.parametrize("name", ["model.Q4_K_M.gguf", "consolidated.safetensors"])
def test_weights_by_another_name_are_named(checkpoint: Path, name: str) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / name)
    assert refusal(checkpoint).startswith(
        f"W: holds no model.safetensors and no model.safetensors.index.json, only {name}; fetch"
    )


def test_a_tokenizer_that_is_a_pointer_is_named(checkpoint: Path) -> None:
    (checkpoint / "tokenizer.json").write_bytes(LFS_POINTER)
    assert refusal(checkpoint).startswith("W/tokenizer.json: is a Git LFS pointer")


def test_missing_files_are_named(checkpoint: Path) -> None:
    (checkpoint / "tokenizer.json").unlink()
    assert refusal(checkpoint) == "W: has no tokenizer.json; expected a fast tokenizer's file"
    (checkpoint / "model.safetensors").unlink()
    assert refusal(checkpoint) == (
        "W: holds no model.safetensors and no model.safetensors.index.json; fetch the weights as "
        "transformers saves them, or run them by an engine of your own"
    )
    (checkpoint / "config.json").unlink()
    assert refusal(checkpoint) == "W/config.json: is missing; expected a Hugging Face checkpoint"


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickles_alone_are_refused(checkpoint: Path, name: str) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / name)
    message = refusal(checkpoint)
    assert message.startswith(f"W: holds {name} but no safetensors")
    assert "safetensors only" in message


def test_a_shard_outside_of_the_checkpoint_is_refused(checkpoint: Path) -> None:
    (checkpoint.parent / "other.safetensors").write_bytes(tensor_file())
    index = {"metadata": {}, "weight_map": {"w": "../other.safetensors"}}
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "'weight_map' gives ../other.safetensors for w; expected" in refusal(checkpoint)


WHOLE = tensor_file()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            WHOLE[:-6],
            f"has {len(WHOLE) - 6} bytes; its header says {len(WHOLE)}: truncated; fetch it again",
        ),
        (
            WHOLE + b"xx",
            f"has {len(WHOLE) + 2} bytes; its header says {len(WHOLE)}: damaged; fetch it again",
        ),
        (
            WHOLE[:20],
            f"has 20 bytes; its header alone takes {len(WHOLE) - 16}: "
            "truncated or no safetensors; fetch it again",
        ),
        (
            b"",
            "has 0 bytes; its header alone takes 8: truncated or no safetensors; fetch it again",
        ),
        (
            LFS_POINTER,
            "is a Git LFS pointer, not the file itself; run `git lfs pull`",
        ),
        (
            struct.pack("<Q", 4) + b"[1]}",
            "its safetensors header is not valid; fetch it again",
        ),
        (
            struct.pack("<Q", 10) + b'{"w": {} }',
            "its safetensors header is not valid; fetch it again",
        ),
    ],
)
def test_a_safetensors_file_that_is_not_whole_is_named(
    checkpoint: Path, content: bytes, message: str
) -> None:
    (checkpoint / "model.safetensors").write_bytes(content)
    assert refusal(checkpoint) == f"W/model.safetensors: {message}"


def test_the_digest_moves_with_every_byte_of_a_small_checkpoint(checkpoint: Path) -> None:
    seen = {weights_digest(checkpoint)}
    assert seen == {weights_digest(checkpoint)}
    for i in range(16):
        damaged = bytearray(WHOLE)
        damaged[-1 - i] ^= 1
        (checkpoint / "model.safetensors").write_bytes(damaged)
        seen.add(weights_digest(checkpoint))
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "added_tokens.json"):
        (checkpoint / name).write_text('{"changed": true}')
        seen.add(weights_digest(checkpoint))
    assert len(seen) == 1 + 16 + 4
    assert all(digest.startswith("sha256:") and len(digest) == 23 for digest in seen)


def test_the_digest_samples_a_large_file_from_first_to_last_byte(
    monkeypatch: pytest.MonkeyPatch, checkpoint: Path
) -> None:
    monkeypatch.setattr(perfline.cases.data, "_BLOCK", 4)
    monkeypatch.setattr(perfline.cases.data, "_BLOCKS", 5)
    content = tensor_file(bytes(1000))
    path = checkpoint / "model.safetensors"
    path.write_bytes(content)
    before = weights_digest(checkpoint)
    start = (len(content) - 4) / 4  # blocks start at 0, 1, 2, 3 and 4 times this

    def moves(position: int) -> bool:
        damaged = bytearray(content)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        return weights_digest(checkpoint) != before

    assert moves(len(content) - 1)
    assert moves(round(2 * start))
    assert moves(round(2 * start) + 3)
    assert not moves(round(2 * start) + 4)


def set_config(checkpoint: Path, **config: object) -> None:
    (checkpoint / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("key", ["_attn_implementation", "attn_implementation"])
def test_an_attention_that_could_run_foreign_code_is_refused(checkpoint: Path, key: str) -> None:
    for name in ("eager", "sdpa", "flash_attention_2", "flex_attention", None):
        set_config(checkpoint, **{key: name})
        check_weights(checkpoint)
    expected = (
        f"W/config.json: '{key}' is evil/kernel, which could fetch and run code; expected one of "
        "eager, sdpa, flash_attention_2, flex_attention (or remove the key)"
    )
    for value in ("evil/kernel", {"": "evil/kernel"}):
        set_config(checkpoint, **{key: value})
        assert refusal(checkpoint) == expected
        set_config(checkpoint, text_config={key: value})
        assert refusal(checkpoint) == expected


def test_an_auto_map_of_another_type_is_refused(checkpoint: Path) -> None:
    set_config(checkpoint, auto_map=5)
    assert refusal(checkpoint) == ("W/config.json: 'auto_map' is 5; expected an object or nothing")


def test_json_nested_without_end_is_refused(checkpoint: Path) -> None:
    deep = b'{"a":' * 100_000
    (checkpoint / "model.safetensors").write_bytes(struct.pack("<Q", len(deep)) + deep)
    assert refusal(checkpoint) == (
        "W/model.safetensors: its safetensors header is not valid; fetch it again"
    )
    (checkpoint / "config.json").write_bytes(deep)
    assert refusal(checkpoint) == ("W/config.json: is not readable JSON: it is nested too deeply")


def test_safetensors_without_a_tensor_are_refused(checkpoint: Path) -> None:
    header = b'{"__metadata__": {}}'
    path = checkpoint / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    assert refusal(checkpoint) == "W: its safetensors hold no tensor; fetch the weights again"


def test_an_index_without_what_transformers_reads_is_refused(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / "a.safetensors")
    index = {"weight_map": {"w": "a.safetensors"}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    assert refusal(checkpoint).startswith("W/model.safetensors.index.json: has no 'metadata'")


@pytest.mark.parametrize("value", [5, ["a"], None])
def test_an_index_that_names_no_file_is_refused(checkpoint: Path, value: object) -> None:
    (checkpoint / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"v": "a.safetensors", "w": value}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    assert refusal(checkpoint) == (
        f"W/model.safetensors.index.json: 'weight_map' gives {value} for w; "
        "expected a file's name; fetch it again"
    )


@pytest.mark.parametrize(
    ("told", "scheme"),
    [
        ({}, ""),
        ({"quantization_config": None}, ""),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "awq, 4 bits"),
        ({"quantization_config": {"load_in_8bit": True}}, "bitsandbytes, 8 bits"),
        ({"quantization_config": {"quant_method": "fp8", "fmt": "e4m3"}}, "fp8, e4m3"),
        ({"quantization_config": {"quant_method": "mxfp4"}}, "mxfp4"),
        ({"quantization_config": {"bits": 2}}, "by a method of no name, 2 bits"),
        ({"compression_config": {"quant_method": "compressed-tensors"}}, "compressed-tensors"),
        ({"text_config": {"quantization_config": {"quant_method": "hqq"}}}, "hqq"),
    ],
)
def test_how_weights_are_quantised_is_config_json_s_word(
    told: dict[str, object], scheme: str
) -> None:
    assert perfline.cases.data.quantization(told) == scheme
