"""Evaluate a checkpoint or an export with EleutherAI's lm-evaluation-harness (optional extra `eval`).

The harness's own command line, with the model `magneto` known to it and taken if no `--model` is given:

    python -m magneto.commands.lm_eval --model_args checkpoint=RUN/export --tasks hellaswag,winogrande,wsc273 --num_fewshot 4

Scoring follows its conventions for causal models: an empty context is the end-of-document token, a context that is too
long loses its beginning, and `loglikelihood_rolling` scores each token once in windows as long as the model's context.
"""

import logging
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from magneto.errors import ConfigError, MagnetoError, nearest
from magneto.inference.compiled_steps import CompiledSteps
from magneto.inference.sampling import Decoding, generate
from magneto.nn import chunked_cross_entropy
from magneto.tasks.causal_lm import CausalLM
from magneto.tasks.registry import load_task
from magneto.training.devices import prediction_autocast

try:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import normalize_gen_kwargs
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as error:
    raise ImportError(f"{error}: the harness is an optional extra, pip install lm_eval.") from error

MAX_NEW_TOKENS = 256  # the harness's own default, where a task does not say
_PRECISIONS = {"auto": "auto", "float32": "32-true", "bfloat16": "bf16-mixed"}
_GENERATION_KEYS = ("until", "max_gen_toks", "do_sample", "temperature", "top_k", "top_p", "seed")
_WITHOUT_EFFECT = {"num_beams": 1, "num_return_sequences": 1, "repetition_penalty": 1}
"""Keys of other models' generation, with the value without effect."""

log = logging.getLogger("lm_eval")

Scored = tuple[tuple[str, str], list[int], list[int]]
"""(context, continuation) as text, then the tokens of both."""


@register_model("magneto")
class MagnetoLM(TemplateLM):  # type: ignore[misc]
    """Model for the harness: log-likelihoods and greedy or sampled continuations.

    Args:
        checkpoint: a run's checkpoint or an export folder, of task=causal_lm.
        batch_size: sequences at once.
        device: where to compute; None: a GPU if there is one. The harness fills in "cuda:0" where nobody asked for it, so
            the CPU is used where CUDA is named and absent.
        max_batch_size: the harness passes it along; batches are as large as `batch_size` says.
        dtype: of the matrix products: float32, bfloat16 (autocast), or auto, which is bfloat16 on a GPU that has it.
        compile: whether generation compiles its steps, see `predict.compile`.

    Raises:
        ConfigError: the checkpoint cannot be read or is of another task, or the dtype is another one.
    """

    def __init__(
        self,
        checkpoint: str,
        batch_size: int | str | None = 8,
        device: str | None = None,
        max_batch_size: int | None = None,
        dtype: str = "float32",
        compile: bool = False,
    ) -> None:
        super().__init__()
        task = load_task(checkpoint)
        if not isinstance(task, CausalLM):
            raise ConfigError(
                f"checkpoint={checkpoint}: is of task={task.name}, the harness needs task=causal_lm."
            )
        if not str(batch_size or 8).isdigit():
            raise ConfigError(f"batch_size={batch_size}: must be a number here, for example 8.")
        if dtype not in _PRECISIONS:
            raise ConfigError(f"dtype={dtype}: must be one of {', '.join(_PRECISIONS)}.")
        self._device = _usable(device)
        self._autocast = prediction_autocast(_PRECISIONS[dtype], self._device.type)
        self.task: CausalLM = task.to(self._device)
        self._generator = CompiledSteps(self.task) if compile else self.task
        self.batch_size = int(batch_size or 8)

    @property
    def max_length(self) -> int:
        """Return the number of tokens in the model's context."""
        return self.task.context

    @property
    def eot_token_id(self) -> int:
        """Return the end of a document, which is also before the first one."""
        return self.task.tokenizer.require("eos")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Return the token ids of the text alone."""
        return self.task.tokenizer.encode(string)

    @torch.inference_mode()
    def _loglikelihood_tokens(self, requests: Sequence[Scored], **kwargs: Any) -> list[tuple[float, bool]]:
        """Return for each (context, continuation) its log-likelihood in nats, and whether greedy decoding gives it."""
        order = sorted(range(len(requests)), key=lambda i: -len(requests[i][1]) - len(requests[i][2]))
        _warn_of_cuts([len(context) + len(text) for _, context, text in requests], self.max_length + 1)
        results: list[tuple[float, bool]] = [(0.0, True)] * len(requests)
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            scores = self._score([(requests[index][1], requests[index][2]) for index in batch])
            for index, result in zip(batch, scores, strict=True):
                results[index] = result
                self.cache_hook.add_partial("loglikelihood", requests[index][0], result)
        return results

    def _score(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        rows = []
        for context, continuation in pairs:
            if len(continuation) > self.max_length:
                raise ConfigError(
                    f"a continuation of {len(continuation)} tokens is longer than the model's context of "
                    f"{self.max_length}: this model cannot do the task."
                )
            rows.append([*context, *continuation][-(self.max_length + 1) :])
        longest = max(map(len, rows)) - 1
        # Padding on the right: no real token sees it.
        tokens = torch.zeros(len(rows), longest, dtype=torch.int64)
        scored = torch.zeros(len(rows), longest, dtype=torch.bool)
        for index, (row, (_, continuation)) in enumerate(zip(rows, pairs, strict=True)):
            tokens[index, : len(row) - 1] = torch.tensor(row[:-1])
            scored[index, len(row) - 1 - len(continuation) : len(row) - 1] = True
        targets = torch.tensor([token for _, continuation in pairs for token in continuation])
        with self._autocast:
            hidden = self.task(tokens.to(self._device))[scored.to(self._device)]
            loss = chunked_cross_entropy(
                hidden, self.task.output_weight, targets.to(self._device), correct=True
            )
        assert loss.correct is not None
        lengths = [len(continuation) for _, continuation in pairs]
        return [
            (-float(nll.sum(dtype=torch.float64)), bool(correct.all()))
            for nll, correct in zip(
                torch.split(loss.nll, lengths), torch.split(loss.correct, lengths), strict=True
            )
        ]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of whole texts, each by itself."""
        windows: list[Scored] = []
        owners = []
        for index, request in enumerate(requests):
            (text,) = request.args
            for window in get_rolling_token_windows(
                self.tok_encode(text), self.prefix_token_id, self.max_length, context_len=1
            ):
                context, continuation = make_disjoint_window(window)
                windows.append((("", text), context, continuation))
                owners.append(index)
        totals = [0.0] * len(requests)
        for owner, (log_likelihood, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[owner] += log_likelihood
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return continuations, up to any of the strings that the task names; greedy unless it asks for samples.

        A sample's random numbers are those of the request's index among the requests of its task: repeats of a question
        differ, and neither the batch size nor other tasks change them.
        """
        groups: dict[Decoding, list[tuple[list[int], int, int]]] = {}
        repeats: Counter[str | None] = Counter()
        for index, request in enumerate(requests):
            context, arguments = request.args
            prompt = self.tok_encode(context) or [self.prefix_token_id]
            groups.setdefault(_decoding(arguments), []).append((prompt, index, repeats[request.task_name]))
            repeats[request.task_name] += 1
        results = [""] * len(requests)
        for settings, group in groups.items():
            # Room for what is generated, as long as half of the context is left to the prompt.
            kept = max(self.max_length - settings.max_new_tokens, -(-self.max_length // 2))
            _warn_of_cuts([len(prompt) for prompt, *_ in group], kept)
            group.sort(key=lambda one: -len(one[0]))
            for start in range(0, len(group), self.batch_size):
                prompts, indices, draws = zip(*group[start : start + self.batch_size], strict=True)
                cut = [prompt[-kept:] for prompt in prompts]
                with self._autocast:
                    texts = generate(self._generator, self.task.tokenizer, cut, settings, draws)
                for index, continuation in zip(indices, texts, strict=True):
                    results[index] = continuation.text
                    self.cache_hook.add_partial("generate_until", requests[index].args, continuation.text)
        return results


def _usable(device: str | None) -> torch.device:
    """Return the device of that name; the CPU where CUDA is absent."""
    if device is None or device.startswith("cuda"):
        if not torch.cuda.is_available():
            log.info("no GPU is available: computing on the CPU")
            return torch.device("cpu")
        device = device or "cuda"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(
            f"--device {device}: cannot be used ({str(error).splitlines()[0]}). Use cpu, cuda or cuda:0."
        ) from error
    return torch.device(device)


def _warn_of_cuts(lengths: Sequence[int], longest: int) -> None:
    """Log how many of the texts lose their beginning because they have too many tokens."""
    if cut := sum(length > longest for length in lengths):
        log.warning(
            "%d of %d prompts are longer than the model's context leaves room for and lose their beginning: up to %d "
            "tokens where %d fit", cut, len(lengths), max(lengths), longest,
        )  # fmt: skip


def _decoding(arguments: Mapping[str, Any]) -> Decoding:
    """Return a task's generation arguments as ours; names and defaults as the harness's own models read them."""
    given = dict(normalize_gen_kwargs(dict(arguments), MAX_NEW_TOKENS))
    for key, value in given.items():
        if key in _WITHOUT_EFFECT and value == _WITHOUT_EFFECT[key]:
            continue
        if key not in _GENERATION_KEYS:
            raise ConfigError(
                f"generation_kwargs.{key}={value}: is not offered, only {', '.join(_GENERATION_KEYS)} are."
                f"{nearest(key, _GENERATION_KEYS)}"
            )
    return Decoding(
        max_new_tokens=given["max_gen_toks"],
        temperature=float(given.get("temperature", 1.0)) if given["do_sample"] else 0.0,
        top_k=given.get("top_k") or None,  # 0: of all tokens
        top_p=given.get("top_p"),
        stop=tuple(text for text in given["until"] if text),
        seed=int(given.get("seed", 0)),
    )


def accuracies(model: Path, tasks: Sequence[str], shots: int, folder: Path | None = None) -> dict[str, float]:
    """Return the accuracy of a model by task, on the device that there is.

    Args:
        model: the folder of a run, a checkpoint or an export of task=causal_lm.
        tasks: names of the harness's tasks, of multiple choice.
        shots: solved examples before each question.
        folder: with tasks of your own; None: the harness's alone.

    Raises:
        ConfigError: the model cannot be read, or is of another task.
        ConnectionError: the data of a task are not on this machine, and there is no network.
    """
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(
        include_path=None if folder is None else str(folder), include_defaults=folder is None
    )
    found = simple_evaluate(
        model=MagnetoLM(checkpoint=str(model)), tasks=list(tasks), num_fewshot=shots, task_manager=manager,
        bootstrap_iters=0, log_samples=False,
    )  # fmt: skip
    assert found is not None, "the process that asks has the results"
    return {task: float(found["results"][task]["acc,none"]) for task in tasks}


def main() -> None:
    """Run the harness's command line."""
    from lm_eval.__main__ import cli_evaluate

    asked = [argument for argument in sys.argv[1:] if argument.startswith("--")]
    if asked and not any(argument.split("=")[0] in ("--model", "-m", "--help") for argument in asked):
        sys.argv += ["--model", "magneto"]
    try:
        cli_evaluate()
    except MagnetoError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except ConnectionError as error:  # of `datasets`, which names the data set
        print(
            f"error: {error}. The harness downloads the data of its tasks: run the command once where there is a network, "
            "copy the cache (HF_HOME) and set HF_HUB_OFFLINE=1; or use local tasks by --include_path.",
            file=sys.stderr,
        )
        sys.exit(2)


if __name__ == "__main__":
    main()
