"""Where are a case's weights and questions, and can they be trusted?

Looked for in this order: ``<data-dir>/<case_dir>/<weight_dir>`` and ``.../<mmlu_dir>``, a tar
beside them (unpacked once), the package's own data (case ``tiny``), for weights the local Hugging
Face cache. Nothing is downloaded: :class:`~perfline.errors.MissingData` holds the command that does
it. Weights are safetensors only; no pickle is opened and no code of a checkpoint is run.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import math
import os
import posixpath
import shlex
import tarfile
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import IO, cast

from perfline.cases.case import Case, Precision
from perfline.errors import DataError, MissingData, printable
from perfline.jsonfile import is_special

PACKAGED_DATA = Path(__file__).parent / "embedded"
MMLU_URL = "https://people.eecs.berkeley.edu/~hendrycks/data.tar"
VARIABLE = "PERFLINE_DATA_DIR"
_SPLITS = ("dev", "test")
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_NEEDED = ("config.json", _SINGLE, _INDEX, "tokenizer.json")  # one of the two in the midst
_ATTENTION = ("eager", "sdpa", "flash_attention_2", "flex_attention")
_POINTER = b"version "  # how a Git LFS pointer begins, and no JSON and no safetensors
_DEEPEST = 64  # directories inside one another in a tar
_LONGEST = 100_000_000  # bytes of a header or a JSON file; the safetensors library's own limit
_BLOCK = 64 * 1024  # bytes that weights_digest reads at one place ...
_BLOCKS = 256  # ... and the number of places, in each file


@dataclass(frozen=True)
class Located:
    """A case's data on this machine."""

    weights: Path  # a Hugging Face checkpoint
    mmlu: Path  # holds dev/ and test/


def directory(given: str | Path | None) -> Path | None:
    """Return ``--data-dir`` as ``given``, else ``$PERFLINE_DATA_DIR``; None where neither is.

    DataError where it is no directory: the package's data, or a download into a mistyped place,
    would stand in for it without a word.
    """
    path = named(given)
    if path is None or path.is_dir():
        return path
    told = f"--data-dir={path}" if given else f"${VARIABLE} is {path}"
    why = "which is no directory" if path.exists() else "which is not there"
    raise DataError(printable(f"{told}, {why}; correct it, make that directory, or leave it out"))


def named(given: str | Path | None) -> Path | None:
    """Return the same, whether it is there or not."""
    name = given or os.environ.get(VARIABLE)
    return Path(name) if name else None


def locate(case: Case, data_dir: Path | None, mmlu: Path | None = None) -> Located:
    """Return where the weights and the questions are; ``mmlu`` overrides the latter.

    Raise MissingData, with the command that gets them, or DataError for an unsafe or torn tar.
    """
    return Located(find_weights(case, data_dir), find_mmlu(case, data_dir, mmlu))


def find_weights(case: Case, data_dir: Path | None) -> Path:
    """Return the checkpoint's directory; MissingData where there is none."""
    for home in _homes(case, data_dir):
        if (home / case.model.weight_dir).is_dir():
            return home / case.model.weight_dir
    cached = hub_cache(case.model.hub_id) if case.model.hub_id else None
    if cached is not None:
        if lacking := _lacking(cached):
            raise MissingData(
                f"case {case.id}: {cached} lacks {', '.join(lacking)}",
                shlex.join(["hf", "download", str(case.model.hub_id), *lacking]),
            )
        return cached
    target = _wanted_home(case, data_dir) / case.model.weight_dir
    command = (
        f"hf download {case.model.hub_id} --local-dir {shlex.quote(str(target))}"
        if case.model.hub_id
        else f"cp -r YOUR_CHECKPOINT {shlex.quote(str(target))}"
    )
    raise MissingData(f"case {case.id}: no weights at {place(target, data_dir)}", command)


def find_mmlu(case: Case, data_dir: Path | None, override: Path | None = None) -> Path:
    """Return the directory that holds dev/ and test/; MissingData where there is none."""
    if override is not None:
        if not _holds(override, _SPLITS):
            raise DataError(f"{override}: holds no dev/ and test/; expected both, with MMLU's CSVs")
        return override
    for home in _homes(case, data_dir):
        target = home / case.mmlu.mmlu_dir
        tars = (target.with_name(f"{target.name}.tar"), home / "data.tar", _tar_beside(home, case))
        for tar in tars:
            if not _holds(target, _SPLITS) and tar.is_file():
                _unpack(tar, target, _SPLITS)
        if _holds(target, _SPLITS):
            return target
    home = _wanted_home(case, data_dir)
    raise MissingData(
        f"case {case.id}: no MMLU questions at {place(home / case.mmlu.mmlu_dir, data_dir)}",
        f"curl -L --create-dirs {MMLU_URL} -o {shlex.quote(str(home / 'data.tar'))}",
    )


def place(target: Path, data_dir: Path | None) -> str:
    """Return what a message calls ``target``, which is below ``DATA_DIR`` where none is given."""
    if data_dir is not None:
        return str(target)
    return f"{target} (DATA_DIR is what --data-dir or {VARIABLE} says; neither is given)"


def _wanted_home(case: Case, data_dir: Path | None) -> Path:
    return (data_dir or Path("DATA_DIR")) / case.model.case_dir


def _tar_beside(home: Path, case: Case) -> Path:
    """Return ``<data-dir>/data.tar``, which all cases share."""
    return home.parents[len(Path(case.model.case_dir).parts) - 1] / "data.tar"


def _homes(case: Case, data_dir: Path | None) -> Iterator[Path]:
    """Yield the case's directories to look in; ``<case_dir>.tar`` is unpacked on the way."""
    for root in (data_dir, PACKAGED_DATA):
        if root is not None:
            home = root / case.model.case_dir
            tar = home.with_name(f"{home.name}.tar")
            if not home.exists() and tar.is_file():
                parts = [Path(p).parts[0] for p in (case.model.weight_dir, case.mmlu.mmlu_dir)]
                _unpack(tar, home, parts)
            yield home


def _holds(directory: Path, names: Sequence[str]) -> bool:
    return all((directory / name).is_dir() for name in names)


def hub_cache(hub_id: str) -> Path | None:
    """Return ``hub_id``'s snapshot in the local Hugging Face cache; None where there is none.

    Files that no checkpoint needs (a README, ``original/``) may be left out of it.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    for name in _NEEDED:
        try:
            found = try_to_load_from_cache(hub_id, name)
        except HFValidationError:
            return None
        if isinstance(found, str):
            return Path(found).parent
    return None


def _lacking(snapshot: Path) -> list[str]:
    """Return the files that a snapshot in the cache lacks of what a checkpoint needs."""
    config, single, index, tokenizer = (snapshot / name for name in _NEEDED)
    wanted = [config, tokenizer]
    if index.is_file() and not single.is_file():
        wanted += [snapshot / name for name in _indexed(index)]
    elif not any(path.is_file() for path in snapshot.glob("*.safetensors")):
        wanted.append(single)
    return [path.name for path in wanted if not path.is_file()]


def cached_dataset(hub_id: str) -> Path | None:
    """Return a dataset's snapshot in the local Hugging Face cache; None where there is none."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, repo_type="dataset", local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError):
        return None


def _unpack(tar: Path, target: Path, names: Sequence[str]) -> None:
    """Make ``target`` the tar's directory that holds ``names``: whole or, if killed, not at all.

    The tar is unpacked beside the target and renamed, so that several processes may try at once.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".unpack-") as name:
            with tarfile.open(tar) as archive:
                for member in archive:
                    _check_member(tar, member)
                _check_end(archive)
                if hasattr(tarfile, "data_filter"):  # 3.11.4, 3.12
                    archive.extractall(name, filter="data")
                else:
                    archive.extractall(name)
            found = _shallowest(Path(name), names)
            if found is None:
                wanted = " and ".join(f"{name}/" for name in names)
                raise DataError(f"{tar}: holds no directory with {wanted}")
            found.chmod(0o755)  # a temporary directory is private
            try:
                found.rename(target)
            except OSError:
                if not _holds(target, names):  # nobody else was faster
                    raise
            Path(name).mkdir(exist_ok=True)  # where it was renamed itself: for the clean-up
    except _BAD_TAR as error:
        raise DataError(f"{tar}: is torn or no tar ({_shown(error)}); fetch it again") from error
    except OSError as error:
        if error.errno is None:  # gzip's and bz2's own: a wrong check sum, no such format
            why = _shown(error)
            raise DataError(f"{tar}: is torn or no tar ({why}); fetch it again") from error
        raise DataError(f"{tar}: cannot be unpacked to {target}: {error.strerror}") from error


# What tarfile and its decompressors raise for damage and for absurd names, links and times.
_BAD_TAR = (
    tarfile.TarError,
    EOFError,
    zlib.error,
    lzma.LZMAError,
    LookupError,
    ValueError,
    OverflowError,
    RecursionError,
)


def _check_end(archive: tarfile.TarFile) -> None:
    """Refuse an archive whose members end anywhere but at its end-of-archive marker.

    tarfile takes any block that is no header for the end. The end is two blocks of zeros and
    nothing but zeros behind; reading them to the last also checks a compressed file's sum.
    """
    file = cast("IO[bytes]", archive.fileobj)
    file.seek(archive.offset)
    zeros = 0
    while chunk := file.read(1 << 20):
        if chunk.strip(b"\0"):
            raise tarfile.ReadError(f"no header at byte {archive.offset}, and more behind it")
        zeros += len(chunk)
    if zeros < 2 * tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"ends at byte {archive.offset + zeros} without an end marker")


def _shown(text: object) -> str:
    """Return a foreign text as one printable line of at most 200 characters."""
    return printable(" ".join(str(text).split())[:200])


def _shallowest(top: Path, names: Sequence[str]) -> Path | None:
    for directory, _, _ in sorted(os.walk(top), key=lambda entry: (entry[0].count(os.sep), entry)):
        if _holds(Path(directory), names):
            return Path(directory)
    return None


def _check_member(tar: Path, member: tarfile.TarInfo) -> None:
    """Refuse a member that would be written, or point, outside; and devices."""
    link = member.linkname if member.issym() or member.islnk() else None
    if link is not None and member.issym() and not posixpath.isabs(link):  # relative to its place
        link = posixpath.normpath(posixpath.join(posixpath.dirname(member.name), link))
    why = None
    if _leaves(member.name):
        why = "is absolute or holds '..'"
    elif link is not None and _leaves(link):
        why = f"links to '{member.linkname}', outside of it"
    elif link is None and not (member.isfile() or member.isdir()):
        why = "is a device or pipe"
    elif member.name.count("/") > _DEEPEST:
        why = f"is more than {_DEEPEST} directories deep"
    if why:
        raise DataError(
            f"{tar}: member '{_shown(member.name)}' {_shown(why)}; refused, nothing was unpacked"
        )


def _leaves(name: str) -> bool:
    windows = PureWindowsPath(name)  # its separators are / and \
    return posixpath.isabs(name) or bool(windows.anchor) or ".." in windows.parts


def check_weights(directory: Path) -> None:
    """Refuse a checkpoint that is not whole, not safetensors, or needs code of its own.

    Reads config.json and each safetensors file's header, not the weights. Raise DataError.
    """
    _refuse_adapter(directory)
    path = directory / "config.json"
    config = _read_json(path)
    auto_map = config.get("auto_map") or {}
    if not isinstance(auto_map, dict):
        raise DataError(f"{path}: 'auto_map' is {_shown(auto_map)}; expected an object or nothing")
    if "AutoModelForCausalLM" in auto_map and not _has_model(config.get("model_type")):
        raise DataError(
            f"{path}: 'auto_map' asks for the checkpoint's own code, which is "
            f"never run, and transformers has no causal LM '{_shown(config.get('model_type'))}' of "
            "its own; update transformers, or run it by an engine of your own"
        )
    if (named := config.get("transformers_weights")) is not None:  # not by every transformers
        raise DataError(
            f"{path}: 'transformers_weights' names {_shown(named)} for the weights; remove the "
            f"key, and call that file {_SINGLE} or {_INDEX}"
        )
    _check_attention(path, config)
    places: dict[str, str] = {}
    for shard in _shards(directory):
        for tensor in json.loads(_read_header(shard)).keys() - {"__metadata__"}:
            if tensor in places:
                raise DataError(
                    f"{directory}: {shard.name} and {places[tensor]} both hold {_shown(tensor)}, "
                    "and loaders do not agree on which one counts; fetch the weights again"
                )
            places[tensor] = shard.name
    if not places:
        raise DataError(f"{directory}: its safetensors hold no tensor; fetch the weights again")
    tokenizer = directory / "tokenizer.json"
    if not tokenizer.is_file():
        raise DataError(f"{directory}: has no tokenizer.json; expected a fast tokenizer's file")
    with tokenizer.open("rb") as file:
        _refuse_pointer(tokenizer, file.read(len(_POINTER)))


def _refuse_adapter(directory: Path) -> None:
    """Refuse a PEFT adapter: with peft installed, transformers would load another model too."""
    path = directory / "adapter_config.json"
    if path.exists():
        base = _shown(_read_json(path).get("base_model_name_or_path"))
        raise DataError(
            f"{path}: makes this an adapter of '{base}'; merge it into that (peft's "
            "merge_and_unload, then save_pretrained), or remove the file if the weights are whole"
        )


def _refuse_pointer(path: Path, first: bytes) -> None:
    if first == _POINTER:
        raise DataError(f"{path}: is a Git LFS pointer, not the file itself; run `git lfs pull`")


def _has_model(kind: object) -> bool:
    """Whether transformers has a causal LM of that ``model_type`` itself; it is run then."""
    from transformers.models.auto import modeling_auto

    return kind in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint's own files say of it, without its weights being read."""

    config: Mapping[str, object]  # config.json
    parameters: int  # of all tensors that are stored
    size: int  # bytes of the files that hold them
    dtypes: Mapping[str, int]  # how many are of each, by safetensors' names, such as "BF16"


def read_checkpoint(directory: Path) -> Checkpoint:
    """Read config.json and the safetensors' headers; DataError as :func:`check_weights` has it."""
    check_weights(directory)
    dtypes: Counter[str] = Counter()
    total = 0
    for shard in _shards(directory):
        size = shard.stat().st_size
        total += size
        for name, tensor in json.loads(_read_header(shard)).items():
            if name == "__metadata__":
                continue
            shape, dtype = tensor.get("shape"), tensor.get("dtype")
            sizes = isinstance(shape, list) and all(type(n) is int and n >= 0 for n in shape)
            # A weight of less than a bit is none: the file's size bounds what it may say.
            if not sizes or not isinstance(dtype, str) or math.prod(shape) > 8 * size:
                raise DataError(
                    f"{shard}: tensor '{_shown(name)}' has shape {_shown(shape)} and dtype "
                    f"{_shown(dtype)}; expected sizes that fit the file, and a name; fetch it again"
                )
            dtypes[dtype] += math.prod(shape)
    return Checkpoint(_read_json(directory / "config.json"), dtypes.total(), total, dtypes)


def quantization(config: Mapping[str, object]) -> str:
    """How config.json says that the weights are quantised, such as ``gptq, 4 bits``; or nothing."""
    told = config.get("quantization_config") or config.get("compression_config")
    if not isinstance(told, dict):
        text = config.get("text_config")  # of a multimodal checkpoint
        return quantization(text) if isinstance(text, dict) else ""
    loads = {bits for bits in (4, 8) if told.get(f"load_in_{bits}bit") is True}  # bitsandbytes
    method = told.get("quant_method") or ("bitsandbytes" if loads else "by a method of no name")
    bits = told.get("bits") or told.get("w_bit") or next(iter(loads), None)
    form = told.get("format") or (told.get("fmt"))
    more = [_shown(form)] if form else [f"{_shown(bits)} bits"] if bits else []
    return ", ".join([_shown(method), *more])


def check_quantization(directory: Path, precision: Precision) -> str:
    """What :func:`quantization` says of the checkpoint; DataError where the case says otherwise.

    Timed as what it is not, a quantised model would be held against figures of another one.
    """
    path = directory / "config.json"
    scheme = quantization(_read_json(path))
    if scheme and precision != "checkpoint":
        raise DataError(
            f"{path}: says that the weights are quantised ({scheme}), and the case that they are "
            f"{precision}; set its model.precision to checkpoint"
        )
    if not scheme and precision == "checkpoint":
        raise DataError(
            f"{path}: has no quantization_config, and the case's model.precision is checkpoint; "
            "set it to fp32, fp16 or bf16"
        )
    return scheme


def _check_attention(path: Path, config: Mapping[str, object]) -> None:
    """Refuse an attention by another name: transformers fetches and runs it as a hub kernel."""
    waiting = list(config.items())
    while waiting:
        key, value = waiting.pop()
        if key.lstrip("_") == "attn_implementation":
            names = value.values() if isinstance(value, dict) else [value]
            for name in names:
                if name is not None and name not in _ATTENTION:
                    raise DataError(
                        f"{path}: '{key}' is {_shown(name)}, which could fetch and run code; "
                        f"expected one of {', '.join(_ATTENTION)} (or remove the key)"
                    )
        elif isinstance(value, dict):  # text_config and the like
            waiting += value.items()


def weights_digest(directory: Path) -> str:
    """Return ``sha256:`` and 16 hex digits that identify a checkpoint, in about 0.1 s.

    Covers config.json, the tokenizer's own JSON files whole; of each safetensors file its
    name, size, header (names, types, shapes of all tensors) and 256 blocks of 64 KiB spread evenly
    from its first byte to its last: a file of up to 16 MiB whole. In a larger one a change to a
    single weight can go unseen, other training or another conversion cannot.
    """
    digest = hashlib.sha256()
    added = ["added_tokens.json"] if (directory / "added_tokens.json").is_file() else []
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", *added):
        path = directory / name
        content = path.read_bytes() if path.is_file() else b""
        digest.update(f"{name} {len(content)}\n".encode() + content)
    for path in _shards(directory):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode() + _read_header(path))
        last = max(size - _BLOCK, 0)
        step = max(last / (_BLOCKS - 1), 1.0)
        whole = size <= _BLOCK * _BLOCKS
        with path.open("rb") as file:
            for i in range(1 if whole else _BLOCKS):
                file.seek(round(i * step))
                digest.update(file.read(size if whole else _BLOCK))
    return f"sha256:{digest.hexdigest()[:16]}"


def _read_json(path: Path) -> dict[str, object]:
    try:
        if is_special(path) or path.stat().st_size > _LONGEST:
            raise DataError(f"{path}: is no file of at most {_LONGEST:,} bytes; fetch it again")
        content = path.read_bytes()
        _refuse_pointer(path, content[: len(_POINTER)])
        data = json.loads(content)
    except FileNotFoundError as error:
        raise DataError(f"{path}: is missing; expected a Hugging Face checkpoint") from error
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: is not readable JSON: {_shown(error)}") from error
    except RecursionError as error:
        raise DataError(f"{path}: is not readable JSON: it is nested too deeply") from error
    if not isinstance(data, dict):
        raise DataError(f"{path}: holds a {type(data).__name__}; expected a JSON object")
    return data


def _shards(directory: Path) -> list[Path]:
    """Return the safetensors files that transformers loads, sorted, all of them there.

    The single file comes first, as in its ``from_pretrained``: an index beside it is not read.
    """
    index, single = directory / _INDEX, directory / _SINGLE
    if single.is_file():
        return [single]
    if index.is_file():
        names = _indexed(index)
        for name in names:
            if not (directory / name).is_file():
                raise DataError(f"{directory}: {name} is missing; {_INDEX} names it")
        return [directory / name for name in names]
    pickles = sorted(p.name for end in ("bin", "pt", "pth") for p in directory.glob(f"*.{end}"))
    others = sorted(p.name for end in ("gguf", "safetensors") for p in directory.glob(f"*.{end}"))
    if pickles and not others:
        raise DataError(
            f"{directory}: holds {pickles[0]} but no safetensors; pickles can run code and are "
            "never opened: safetensors only (convert it, or fetch the safetensors revision)"
        )
    beside = f", only {_shown(others[0])}" if others else ""
    raise DataError(
        f"{directory}: holds no {_SINGLE} and no {_INDEX}{beside}; fetch the weights as "
        "transformers saves them, or run them by an engine of your own"
    )


def _indexed(index: Path) -> list[str]:
    """Return the names of the files of an index, sorted."""
    content = _read_json(index)
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise DataError(f"{index}: has no 'weight_map'; expected {{tensor: file}}")
    if not isinstance(content.get("metadata"), dict):
        raise DataError(f"{index}: has no 'metadata', which transformers reads; expected an object")
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or Path(name).name != name:
            raise DataError(
                f"{index}: 'weight_map' gives {_shown(name)} for {_shown(tensor)}; "
                "expected a file's name; fetch it again"
            )
    return sorted(set(weight_map.values()))


def left_aside(directory: Path) -> list[str]:
    """Return the names of safetensors files of the checkpoint that transformers does not load."""
    return sorted(path.name for path in {*directory.glob("*.safetensors")} - {*_shards(directory)})


def _read_header(path: Path) -> bytes:
    """Return a safetensors file's header, checked against the file's size.

    The format: 8 bytes of header length (little endian), the header as JSON, the tensors' bytes
    (https://huggingface.co/docs/safetensors).
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        first = file.read(8)
        length = int.from_bytes(first, "little")
        _refuse_pointer(path, first)
        if size < 8 + length:
            raise DataError(
                f"{path}: has {size} bytes; its header alone takes {8 + length}: "
                "truncated or no safetensors; fetch it again"
            )
        if length > _LONGEST:
            raise DataError(
                f"{path}: its header has {length} bytes (expected at most {_LONGEST}); "
                "fetch it again"
            )
        header = file.read(length)
    try:
        tensors = json.loads(header)
        ends = [info["data_offsets"][1] for name, info in tensors.items() if name != "__metadata__"]
        expected = 8 + length + max(ends, default=0)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise DataError(f"{path}: its safetensors header is not valid; fetch it again") from error
    if size != expected:
        raise DataError(
            f"{path}: has {size} bytes; its header says {expected}: "
            f"{'truncated' if size < expected else 'damaged'}; fetch it again"
        )
    return header
