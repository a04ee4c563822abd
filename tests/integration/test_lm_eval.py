"""The adapter to lm-evaluation-harness, on tasks in local files and on single requests."""

import json
import logging
import math
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from magneto.errors import MagnetoError
from magneto.inference.sampling import Decoding, generate
from magneto.tasks.causal_lm import CausalLM
from magneto.tasks.registry import load_task
from tests.toys.language_models import TEXT, export_untrained

pytest.importorskip("lm_eval")
from lm_eval.api.instance import Instance

from magneto.commands import lm_eval
from magneto.commands.lm_eval import MagnetoLM

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with random weights, whose context is short."""
    return export_untrained(tmp_path_factory.mktemp("model"), 16)


@pytest.fixture(scope="module")
def model(exported: Path) -> MagnetoLM:
    return MagnetoLM(checkpoint=str(exported), batch_size=3, device="cpu")


def instances(kind: str, arguments: list[tuple]) -> list[Instance]:
    return [Instance(request_type=kind, doc={}, arguments=one, idx=i) for i, one in enumerate(arguments)]


def log_likelihood(task: CausalLM, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    """Of one pair, by plain torch."""
    tokens = [*context, *continuation][-17:]
    with torch.no_grad():
        log_probs = task.logits(task(torch.tensor([tokens[:-1]]))).log_softmax(-1)[0, -len(continuation) :]
    total = sum(float(log_probs[index, token]) for index, token in enumerate(continuation))
    return total, log_probs.argmax(-1).tolist() == continuation


def test_log_likelihoods_alone_and_in_batches(exported: Path, model: MagnetoLM) -> None:
    """With an empty context, a space at the end of a context, one that is too long, and unequal lengths in a batch."""
    task = load_task(exported)
    tokenizer = task.tokenizer
    pairs = [
        ("the cat", " sat on the mat"),
        ("", "the"),
        ("the dog ", "sat"),
        (TEXT, " the cat"),
        ("on", " the dog."),
    ]
    scores = model.loglikelihood(instances("loglikelihood", pairs), disable_tqdm=True)
    for (context, continuation), (value, greedy) in zip(pairs, scores, strict=True):
        whole = tokenizer.encode(context + continuation)
        head = tokenizer.encode(context.rstrip())
        expected = log_likelihood(task, head or [tokenizer.require("eos")], whole[len(head) :])
        assert value == pytest.approx(expected[0], abs=1e-4) and greedy == expected[1]
    start = tokenizer.encode("the cat")
    drawn = generate(task, tokenizer, [start], Decoding(max_new_tokens=5, temperature=0))
    tokens = list(drawn[0].tokens)
    other = [*tokens[:-1], (tokens[-1] + 1) % 275]
    scored = model._loglikelihood_tokens([(("", ""), start, one) for one in (tokens, other)])
    assert [greedy for _, greedy in scored] == [True, False]


def test_rolling_scores_every_token_once(exported: Path, model: MagnetoLM) -> None:
    """Rolling scores every token once with all the context there is."""
    task = load_task(exported)
    text = f"{TEXT} {TEXT}"
    ids = task.tokenizer.encode(text)
    assert 3 * 16 < len(ids) < 4 * 16
    scores = model.loglikelihood_rolling(instances("loglikelihood_rolling", [(text,), ("the cat",)]))
    # Inputs and targets of a text that begins after </s>; the last window is moved back to be full.
    row, expected = [2, *ids], 0.0
    for first, scored in ((0, 16), (16, 16), (32, 16), (len(ids) - 16, len(ids) - 48)):
        window = row[first : first + 17]
        expected += log_likelihood(task, window[:-scored], window[-scored:])[0]
    assert scores[0] == pytest.approx(expected, abs=1e-3)
    short = task.tokenizer.encode("the cat")
    assert scores[1] == pytest.approx(log_likelihood(task, [2], short)[0], abs=1e-4)


def test_generation_stops_where_the_task_says(exported: Path, model: MagnetoLM) -> None:
    task = load_task(exported)
    context = task.tokenizer.encode("the cat")
    free = generate(task, task.tokenizer, [context], Decoding(max_new_tokens=8, temperature=0))[0].text
    stop = free[3]
    arguments = [
        ("the cat", {"until": [], "max_gen_toks": 8}),
        ("the cat", {"until": stop, "max_gen_toks": 8, "do_sample": False, "temperature": 0.0}),
        ("the dog sat", {"until": [], "max_gen_toks": 8}),
    ]
    texts = model.generate_until(instances("generate_until", arguments))
    assert texts[0] == free and texts[1] == free[: free.index(stop)] and texts[2]


SAMPLED = {"until": [], "do_sample": True, "temperature": 1.0, "max_gen_toks": 8}


@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_repeats_of_a_question_differ(exported: Path, batch_size: int) -> None:
    """Each repeat has random numbers of its own; neither the batch size nor another task's requests change them."""
    model = MagnetoLM(checkpoint=str(exported), batch_size=batch_size, device="cpu")
    task, start = model.task, model.tok_encode("the cat")
    expected = generate(
        task, task.tokenizer, [start] * 8, Decoding(max_new_tokens=8, temperature=1.0, top_p=None)
    )
    requests = instances("generate_until", [("the cat", SAMPLED)] * 8)
    assert model.generate_until(requests) == [one.text for one in expected]
    assert len({one.text for one in expected}) == 8
    other = instances("generate_until", [("on the mat", SAMPLED)] * 3)
    for request in other:
        request.task_name = "another"
    assert model.generate_until([*other, *requests])[3:] == [one.text for one in expected]


@pytest.mark.parametrize(
    "arguments",
    [
        {"max_new_tokens": 6}, {"max_tokens": 6}, {"max_completion_tokens": 6},
        {"max_gen_toks": 6, "num_beams": 1, "top_k": 0, "until": [""]},
        {"max_gen_toks": 6, "until": "", "do_sample": False, "temperature": 0.7},
    ],
)  # fmt: skip
def test_the_harness_generation_keys(model: MagnetoLM, arguments: dict) -> None:
    """Names and neutral values that stock tasks use mean what they mean to the harness's own models."""
    task = model.task
    expected = generate(
        task, task.tokenizer, [model.tok_encode("the cat")], Decoding(max_new_tokens=6, temperature=0)
    )
    assert model.generate_until(instances("generate_until", [("the cat", arguments)])) == [expected[0].text]


@pytest.mark.parametrize(("key", "value"), [("num_beams", 4), ("repetition_penalty", 1.2), ("max_lenght", 9)])
def test_other_generation_keys_are_refused(model: MagnetoLM, key: str, value: float) -> None:
    with pytest.raises(MagnetoError, match=rf"generation_kwargs\.{key}={value}: is not offered"):
        model.generate_until(instances("generate_until", [("a", {key: value})]))


def test_a_cut_prompt_is_reported(model: MagnetoLM, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "lm_eval"):
        model.generate_until(instances("generate_until", [("the cat", SAMPLED), (TEXT, SAMPLED)]))
        model.loglikelihood(instances("loglikelihood", [(TEXT, " the cat")]), disable_tqdm=True)
    assert [record.getMessage()[:6] for record in caplog.records] == ["1 of 2", "1 of 1"]


def test_the_default_device_without_a_gpu(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness says cuda:0 where nobody names a device."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert MagnetoLM(checkpoint=str(exported), device="cuda:0").task.device == torch.device("cpu")
    with pytest.raises(MagnetoError, match=r"--device gpu: cannot be used"):
        MagnetoLM(checkpoint=str(exported), device="gpu")


def test_dtype_of_the_products(exported: Path, model: MagnetoLM) -> None:
    """bfloat16 is that of the task under autocast; auto is float32 without a GPU."""
    request = instances("loglikelihood", [("the cat", " sat on the mat")])
    start, rest = model.tok_encode("the cat"), model.tok_encode(" sat on the mat")
    full = model.loglikelihood(request, disable_tqdm=True)
    half = MagnetoLM(checkpoint=str(exported), device="cpu", dtype="bfloat16")
    ((found, _),) = half.loglikelihood(request, disable_tqdm=True)
    with torch.autocast("cpu", torch.bfloat16):
        expected, _ = log_likelihood(model.task, start, rest)
        text = generate(model.task, model.task.tokenizer, [start], Decoding(max_new_tokens=6, temperature=0))[
            0
        ].text
    assert found == pytest.approx(expected, abs=1e-4) and abs(found - full[0][0]) > 1e-3
    arguments = instances("generate_until", [("the cat", {"until": [], "max_gen_toks": 6})])
    assert half.generate_until(arguments) == [text]
    auto = MagnetoLM(checkpoint=str(exported), device="cpu", dtype="auto")
    assert auto.loglikelihood(request, disable_tqdm=True) == full
    with pytest.raises(MagnetoError, match="dtype=float16: must be one of auto, float32, bfloat16"):
        MagnetoLM(checkpoint=str(exported), device="cpu", dtype="float16")


@pytest.mark.slow
def test_compiled_steps_of_the_harness(exported: Path, model: MagnetoLM) -> None:
    """compile=true generates the same by inductor, in batches of three and one."""
    arguments = [(text, {"until": [], "max_gen_toks": 8}) for text in ("the cat", "on", "the dog sat", "mat")]
    compiled = MagnetoLM(checkpoint=str(exported), batch_size=3, device="cpu", compile=True)
    expected = model.generate_until(instances("generate_until", arguments))
    assert compiled.generate_until(instances("generate_until", arguments)) == expected


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A folder of three tasks: multiple choice, perplexity and generation, with their documents as JSON lines."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = [
        {"question": "the cat sat on", "choices": ["the mat", "a dog"], "answer": number % 2, "text": TEXT}
        for number in range(6)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shared = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
        "test_split": "test",
    }
    definitions = {
        "local_choice": {
            "output_type": "multiple_choice", "doc_to_text": "{{question}}", "doc_to_choice": "{{choices}}",
            "doc_to_target": "{{answer}}", "metric_list": [{"metric": "acc"}],
        },
        "local_perplexity": {
            "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}",
            "metric_list": [{"metric": "bits_per_byte"}, {"metric": "byte_perplexity"}],
        },
    }  # fmt: skip
    for name, definition in definitions.items():
        (folder / f"{name}.yaml").write_text(json.dumps({"task": name, **shared, **definition}))
    return folder


def evaluate(arguments: list[str], tasks: Path, folder: Path) -> dict:
    """Results of the harness's command line, on a machine without a GPU and without a network."""
    command = [
        sys.executable, "-m", "magneto.commands.lm_eval", *arguments, "--include_path", str(tasks),
        "--output_path", str(folder / "out"),
    ]  # fmt: skip
    environment = {
        "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "PATH": "",
        "HOME": str(folder), "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    (file,) = (folder / "out").rglob("results*.json")
    return json.loads(file.read_text())["results"]


LOCAL_TASKS = "local_choice,local_perplexity"


@pytest.mark.slow
def test_the_command_runs_tasks_from_local_files(
    exported: Path, model: MagnetoLM, tasks: Path, tmp_path: Path
) -> None:
    results = evaluate(
        ["--model_args", f"checkpoint={exported}", "--tasks", LOCAL_TASKS, "--device", "cpu"], tasks, tmp_path
    )
    pairs = [("the cat sat on", f" {choice}") for choice in ("the mat", "a dog")]
    values = [value for value, _ in model.loglikelihood(instances("loglikelihood", pairs), disable_tqdm=True)]
    best = values.index(max(values))
    assert results["local_choice"]["acc,none"] == sum(number % 2 == best for number in range(6)) / 6
    nats = -model.loglikelihood_rolling(instances("loglikelihood_rolling", [(TEXT,)]))[0]
    assert results["local_perplexity"]["bits_per_byte,none"] == pytest.approx(nats / math.log(2) / len(TEXT))


def documented_commands() -> list[str]:
    """Every command line of the harness that the project shows, once, its tasks replaced by local ones."""
    files = [
        ROOT / "README.md",
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "conf").rglob("*.yaml"),
        Path(lm_eval.__file__),
    ]
    found = [
        re.sub(r"--tasks [\w,]+", f"--tasks {LOCAL_TASKS}", line)
        for file in files
        for line in re.findall(
            r"python -m magneto\.commands\.lm_eval (.*checkpoint=.*)", file.read_text(encoding="utf-8")
        )
    ]
    assert len(found) >= 3
    return sorted(set(found))


@pytest.mark.slow
@pytest.mark.parametrize("command", documented_commands())
def test_documented_commands_need_no_gpu(command: str, exported: Path, tasks: Path, tmp_path: Path) -> None:
    arguments = shlex.split(re.sub(r"checkpoint=\S+", f"checkpoint={exported}", command))
    assert set(evaluate(arguments, tasks, tmp_path)) == set(LOCAL_TASKS.split(","))


def test_another_task_s_checkpoint_is_refused(run_text) -> None:
    folder = run_text("task=mlm", "name=one", "trainer.max_steps=1")["folder"]
    with pytest.raises(MagnetoError, match="task=mlm"):
        MagnetoLM(checkpoint=f"{folder}/export")


def test_missing_network_is_one_line(monkeypatch, capsys) -> None:
    def unreachable() -> None:
        raise ConnectionError("Couldn't reach 'Rowan/hellaswag' on the Hub (LocalEntryNotFoundError)")

    monkeypatch.setattr("lm_eval.__main__.cli_evaluate", unreachable)
    monkeypatch.setattr("sys.argv", ["lm_eval"])
    with pytest.raises(SystemExit) as ended:
        lm_eval.main()
    shown = capsys.readouterr().err
    assert ended.value.code == 2 and re.fullmatch(r"error: .*hellaswag.*HF_HOME.*--include_path\.\n", shown)
