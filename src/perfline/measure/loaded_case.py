"""What is a case whose weights, questions and prompts are at hand, and how does it get there?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from perfline.cases.case import Case, WeightsKind
from perfline.engines.device import Device
from perfline.engines.engine import Engine, EngineName
from perfline.errors import MissingRanks, RankError
from perfline.measure.pass_part import SharedRunner
from perfline.tasks.mmlu import Prompt

if TYPE_CHECKING:
    from perfline.distributed.replica import Replica


_ALIKE = ("torch", "transformers")  # on all ranks that hold one model between them


class Opened(Protocol):
    """A case whose model is on the device and whose prompts are made."""

    @property
    def prompts(self) -> Sequence[Prompt]:
        """Every question's prompt."""

    @property
    def load_s(self) -> float:
        """Seconds of the load."""

    @property
    def load_peak_gib(self) -> float | None:
        """Peak memory of the load, GiB; None where the device does not count it."""

    @property
    def facts(self) -> Mapping[str, str]:
        """What was loaded, such as the weights' digest."""

    def engine(self, name: EngineName) -> Engine:
        """The engine of that name."""

    def shared(self, name: EngineName, say: Callable[[str], None]) -> SharedRunner | None:
        """What answers by shared prefixes; None or NoSharedPrefixes where there is no such path."""

    def close(self) -> None:
        """Free the model."""


@dataclass(frozen=True)
class OpenCase:
    """``Opened`` over a real model."""

    prompts: Sequence[Prompt]
    load_s: float
    load_peak_gib: float | None
    facts: Mapping[str, str]
    engine: Callable[[EngineName], Engine]
    shared: Callable[[EngineName, Callable[[str], None]], SharedRunner | None]
    close: Callable[[], None]


def open_case(
    case: Case,
    device: Device,
    data_dir: Path | None,
    weights: WeightsKind,
    replica: Replica | None = None,
) -> OpenCase:
    """Find weights and questions, load the model, tokenise the prompts.

    ``replica``: the ranks that the model is split over; None for a model that is not. Raises
    MissingData (with the command that gets them), MissingRanks, DataError, EngineError, RankError.
    """
    from perfline.cases import data
    from perfline.engines import hf, upstream
    from perfline.tasks import mmlu, prompt_cache
    from perfline.tasks import prompt_lengths as lengths

    if replica is None and case.parallel.tensor > 1:
        raise MissingRanks(
            f"case '{case.id}' splits its model over {case.parallel.tensor} ranks "
            "(parallel.tensor): type the same command after `torchrun --standalone "
            f"--nproc-per-node={case.parallel.tensor} -m`"
        )
    if weights == "dummy":
        model = hf.load(case, device, None, replica)
        facts: dict[str, str] = {}
        limit = min(case.mmlu.max_prompt_tokens, model.positions)
        prompts = lengths.dummy_prompts(model.vocabulary, limit)
    else:
        with replica.agreeing() if replica is not None else nullcontext():
            located = data.locate(case, data_dir)
            data.check_weights(located.weights)
            subjects = mmlu.load_subjects(located.mmlu, case.mmlu.few_shots)
        model = hf.load(case, device, located.weights, replica)
        prompts = prompt_cache.cached_prompts(
            case,
            located.weights,
            subjects,
            lambda: mmlu.build_prompts(subjects, model.encode, case.mmlu, model.positions),
        )
        facts = {
            "weights": data.weights_digest(located.weights),
            "mmlu": mmlu.question_set_digest(subjects),
        }

    if replica is not None:
        own = {"case": case.digest(weights), **facts}
        try:
            replica.check_alike(own | {name: metadata.version(name) for name in _ALIKE})
        except RankError:
            replica.end()  # the others end it too: nobody is to wait for them
            model.close()
            raise

    def shared(name: EngineName, say: Callable[[str], None]) -> SharedRunner:
        upstream.check_prefixes()
        from perfline.engines.shared_prefix import SharedPrefixRunner

        return SharedPrefixRunner(model.engine(name), say=say)

    return OpenCase(
        prompts, model.load_s, model.load_peak_gib, facts, model.engine, shared, model.close
    )
