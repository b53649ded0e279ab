"""How long are MMLU's prompts in tokens? Writes ``src/perfline/tasks/mmlu_token_lengths.json``.

    pip install tiktoken; pip install --no-deps llama-models    # ships Llama 3's tokenizer.model
    python scripts/make_token_lengths.py --mmlu ../shared/data/mmlu

For every subject: the tokens of instruction and shots by number of shots kept (index 0 to 5; a long
prompt drops shots from the front), and of every test question up to "Answer:". The two add up
exactly to the whole prompt's tokens; the script checks that for every prompt, with the shots that
it keeps at 2048 tokens, and refuses to write otherwise. BOS is counted, once, in the prefix.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path

import tiktoken
import tiktoken.load

from perfline.tasks.prompts import Encode, Subject, load_subjects, render_prompt

SHOTS = 5
MAX_PROMPT_TOKENS = 2048
OUT = Path(__file__).parents[1] / "src" / "perfline" / "tasks" / "mmlu_token_lengths.json"
SOURCE = (
    "MMLU dev+test, 5 shots, Llama-3 tokenizer with BOS; prefix_tokens_by_shots[k] = instruction + "
    "the last k shots, for k = 0 to 5; question = what follows, up to 'Answer:'; untruncated"
)
# llama_models/llama3/tokenizer.py, 0.3.0
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def find_tokenizer_model() -> Path | None:
    """Return the tokenizer.model inside an installed llama-models, without importing it."""
    spec = importlib.util.find_spec("llama_models")
    for place in (spec.submodule_search_locations or []) if spec else []:
        model = Path(place) / "llama3" / "tokenizer.model"
        if model.is_file():
            return model
    return None


def llama3_encode(model: Path) -> Encode:
    """Return Llama 3's encoder, with BOS."""
    ranks = tiktoken.load.load_tiktoken_bpe(str(model))
    bos = len(ranks)
    bpe = tiktoken.Encoding(
        "llama3",
        pat_str=PATTERN,
        mergeable_ranks=ranks,
        special_tokens={"<|begin_of_text|>": bos},
    )
    return lambda texts: [[bos, *ids] for ids in bpe.encode_ordinary_batch(list(texts))]


def subject_lengths(subject: Subject, encode: Encode) -> dict[str, list[int]]:
    """Return the lengths of one subject, checked to be additive for every prompt."""
    ask = [render_prompt(Subject(subject.name, (), ()), q, 0) for q in subject.test]
    head = render_prompt(Subject(subject.name, (), ()), subject.test[0], 0)
    head = head[: head.index("\n\n") + 2]
    whole = [render_prompt(subject, subject.test[0], k) for k in range(SHOTS + 1)]
    prefixes = [text[: len(text) - len(ask[0]) + len(head)] for text in whole]
    by_shots = [len(ids) for ids in encode(prefixes)]
    questions = [len(ids) - 1 for ids in encode([text[len(head) :] for text in ask])]
    for question, tokens in zip(subject.test, questions, strict=True):
        for shots in range(SHOTS, -1, -1):
            total = len(encode([render_prompt(subject, question, shots)])[0])
            if total != by_shots[shots] + tokens:
                raise SystemExit(f"{question.id}: {total} != {by_shots[shots]} + {tokens}")
            if total + 1 <= MAX_PROMPT_TOKENS:
                break
    return {"prefix_tokens_by_shots": by_shots, "question_tokens": questions}


def main() -> None:
    """Measure every subject and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mmlu", type=Path, required=True, help="directory with dev/ and test/")
    parser.add_argument("--tokenizer", type=Path, help="tokenizer.model (default: llama-models')")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    model = options.tokenizer or find_tokenizer_model()
    if model is None:
        parser.error("no tokenizer.model: pip install --no-deps llama-models, or pass --tokenizer")
    encode = llama3_encode(model)
    subjects = {s.name: subject_lengths(s, encode) for s in load_subjects(options.mmlu, SHOTS)}
    text = json.dumps({"source": SOURCE, "subjects": subjects}, separators=(",", ":"))
    options.out.write_text(
        text.replace('"subjects":{', '"subjects":{\n').replace("]},", "]},\n") + "\n"
    )


if __name__ == "__main__":
    main()
