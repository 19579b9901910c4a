"""What a GPU computes otherwise is what a CPU computes: shown on the CPU, by equality and by counting."""

import re

import mlx.core as mx
import mlx.optimizers as optimizers
import numpy as np
import pytest
from mlx import nn
from mlx.utils import tree_flatten
from mlx_lm import load
from mlx_lm.tuner.trainer import default_loss

from tests.helpers import QUESTIONS, SENTENCES, chat_prompt, run_with_dataset, strong_adapter
from tests.test_training import WEIGHTS, prepared
from unlearn_mlx.compute import measured, prefix_copies
from unlearn_mlx.compute.device import Device
from unlearn_mlx.compute.workers import ALONE
from unlearn_mlx.inference import batch as batches_of_rows
from unlearn_mlx.inference.chat_model import ChatModel
from unlearn_mlx.inference.generation import Request, decode, generate
from unlearn_mlx.inference.loading import load_by_name
from unlearn_mlx.inference.sampling import draw_token, draw_tokens
from unlearn_mlx.inference.shared_prefix import GrowingRows, common_prefix
from unlearn_mlx.models.registry import resolve_model
from unlearn_mlx.runs.records import Computation, ProgressEvent
from unlearn_mlx.runs.run import Work
from unlearn_mlx.seeding import random_source
from unlearn_mlx.sft import batches, parallel
from unlearn_mlx.sft import compiled as compiled_steps
from unlearn_mlx.sft.batches import BatchShape, common_shapes, part_sizes, prefix_of, shape_of
from unlearn_mlx.sft.compiled import optimizer_step
from unlearn_mlx.sft.loss import CHUNK, Weights, loss_parts
from unlearn_mlx.sft.trainer import train

GPU = Device("metal", "Apple M9", 2**34, 8)


@pytest.fixture
def on_a_gpu(monkeypatch):
    """Answers are decoded as on a GPU; the CPU computes."""
    monkeypatch.setattr(batches_of_rows, "current_device", lambda: GPU)


def asked(model, temperature=0.0, count=20, max_tokens=12):
    """Prompts of many lengths, some of them twice, which end at several tokens."""
    texts = [f"{QUESTIONS[i % 7]} {SENTENCES[i % 5][: 4 * (i % 9)]}" for i in range(count)]
    return [
        Request(f"r{i}", chat_prompt(model, text), max_tokens - i % 4, temperature)
        for i, text in enumerate(texts)
    ]


# Steps of training.


def trainings(model, computation=None):
    """One training as a CPU does it and one as a GPU does, on the same rows, and batches for them."""
    rows, references, prefix = prepared(model, 24)
    adapter = strong_adapter(model)
    plain, compiled = (parallel.Training(model, adapter, rows, references, prefix, WEIGHTS) for _ in range(2))
    batches = [list(range(len(rows))), [0, 3, 25], [5, 8, 26]]
    compiled.compile_for(batches)
    return plain, compiled, batches


def gradients_of(training, chosen, of_larger_step=1):
    """The loss's parts and gradients of rows that are a share of a step."""
    sizes = [size * of_larger_step for size in part_sizes(training.rows[i] for i in chosen)]
    parts, gradients = training.gradients(chosen, sizes)
    return np.array(parts), {name: np.array(value) for name, value in tree_flatten(gradients)}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_compiled_step_has_the_loss_and_the_gradients_of_a_plain_one(tiny_model, checkpointing):
    computation = Computation(decode_batch=16, part_rows=50, checkpointing=checkpointing)
    plain, compiled, batches = trainings(tiny_model, computation)
    batches = batches[: 1 if checkpointing else None]
    before = {name: np.array(value) for name, value in tree_flatten(tiny_model.model.parameters())}
    for chosen in batches:
        parts, gradients = gradients_of(plain, chosen)
        same_parts, same_gradients = gradients_of(compiled, chosen)
        assert same_parts == pytest.approx(parts, rel=1e-5, abs=1e-6)
        assert gradients.keys() == same_gradients.keys()
        for name, value in gradients.items():
            distance = np.linalg.norm(same_gradients[name] - value) / np.linalg.norm(value)
            assert distance < 1e-5, name
    after = dict(tree_flatten(tiny_model.model.parameters()))
    assert all(np.array_equal(before[name], np.array(after[name])) for name in before)


def test_a_graph_is_built_once_a_shape_however_many_batches_come(tiny_model, monkeypatch):
    from unlearn_mlx.sft import loss

    built = []
    monkeypatch.setattr(loss, "loss_parts", lambda *given: built.append(1) or loss_parts(*given))
    _, compiled, batches = trainings(tiny_model)
    for chosen in batches * 3:
        mx.eval(compiled.gradients(chosen, [1, 1, 1]))
    assert len(built) <= min(parallel.MOST_SHAPES, len(batches))
    assert len(built) == len({shape_of([compiled.rows[i] for i in c], compiled.prefix) for c in batches})


def products_in(arrays, path):
    """How many matrix products are asked for, without computing any."""
    mx.export_to_dot(str(path), *(value for _, value in tree_flatten(arrays)))
    return len(re.findall('label ?="Matmul"', path.read_text()))


def test_a_step_of_whole_rows_asks_for_the_products_of_mlx_lms(tiny_model, monkeypatch, tmp_path):
    monkeypatch.setattr(batches, "current_device", lambda: GPU)
    rows = [row for row in prepared(tiny_model, 12)[0] if row.part != "negative"][:8]
    adapter = strong_adapter(tiny_model)

    def products(prefix):
        training = parallel.Training(tiny_model, adapter, rows, [None] * 8, prefix, Weights(0.0, 0.0))
        return products_in(training.gradients(range(8), [1, 1, 1]), tmp_path / "ours")

    longest = max(len(row.tokens) for row in rows)
    tokens = mx.array([row.tokens + [0] * (longest - len(row.tokens)) for row in rows])
    spans = mx.array([(row.targets[0], len(row.tokens) - 1) for row in rows])
    stock = nn.value_and_grad(tiny_model.model, default_loss)(tiny_model.model, tokens, spans)
    asked = products_in(stock, tmp_path / "stock")
    chunks = -(-sum(len(row.targets) for row in rows) // CHUNK)  # the head's, there and back
    assert prefix_of(tiny_model, rows) == []
    assert products([]) <= asked + 2 * chunks
    assert products(common_prefix([row.tokens[: row.targets[0]] for row in rows])) > 1.4 * asked


@pytest.mark.parametrize(
    ("backend", "steps", "compiled"),
    [("metal", 5, True), ("cuda", 144, False), ("cuda", 5000, True), ("cpu", 5000, False)],
)
def test_steps_are_compiled_where_they_are_worth_it(monkeypatch, backend, steps, compiled):
    monkeypatch.setattr(compiled_steps, "current_device", lambda: Device(backend, "", 2**34, 8))
    assert compiled_steps.compiles_steps(steps) == compiled


def test_a_hundred_shapes_become_eight_that_all_fit_into():
    source = random_source(0, "shapes")
    shapes = [BatchShape(*map(int, source.integers([4, 16, 7], [80, 300, 10]))) for _ in range(100)]
    common = common_shapes(shapes, 8)
    assert len(common) <= 8
    assert all(any(np.all(np.array(one) >= shape) for one in common) for shape in shapes)
    assert common_shapes(shapes[:3], 8) == sorted(shapes[:3])


def test_a_compiled_update_moves_the_adapter_as_a_plain_one_does(tiny_model):
    plain, _, batches = trainings(tiny_model)
    start = plain.adapter.weights()
    moved = []
    for compiled in (False, True):
        plain.adapter.set_weights(start)
        optimizer = optimizers.Adam(learning_rate=optimizers.cosine_decay(1e-2, 10))
        optimizer.init(tiny_model.model.trainable_parameters())
        update = optimizer_step(tiny_model.model, optimizer, compiled)
        for chosen in batches:
            update(parallel.step_gradients(plain, chosen, ALONE)[1])
        mx.eval(tiny_model.model.trainable_parameters(), optimizer.state)
        assert optimizer.step.item() == len(batches)
        moved.append(plain.adapter.weights())
    for name, value in moved[0].items():
        assert mx.abs(value - start[name]).max().item() > 1e-3
        assert mx.allclose(value, moved[1][name], rtol=1e-4, atol=1e-6), name


def test_a_training_on_a_gpu_learns_what_one_on_a_cpu_learns(tiny_folder, tmp_path, monkeypatch):
    losses = {}
    for device in ("cpu", "gpu"):
        run = run_with_dataset(tmp_path / device, tiny_folder, epochs=3, validations=1, rank=4)
        with load_by_name(str(tiny_folder)) as model:
            if device == "gpu":
                monkeypatch.setattr(batches, "current_device", lambda: GPU)
                monkeypatch.setattr(compiled_steps, "current_device", lambda: GPU)
            train(model, Work(run, run.settings))
        progress = (event for event in run.events() if isinstance(event, ProgressEvent))
        steps = [event for event in progress if event.forget_loss is not None]
        losses[device] = [(e.forget_loss, e.retain_kl, e.negative_preference) for e in steps]
    assert len(losses["cpu"]) > 1
    assert losses["gpu"] == pytest.approx(np.array(losses["cpu"]), rel=2e-3, abs=2e-4)


def small_gradients(model):
    """The loss's parts and gradients as small as those of a model of billions of weights."""
    rows, references, prefix = prepared(model, 24)
    adapter = strong_adapter(model)
    adapter.set_weights({name: value * 1e-3 for name, value in adapter.weights().items()})
    training = parallel.Training(model, adapter, rows, references, prefix, WEIGHTS)
    found = gradients_of(training, list(range(len(rows))), of_larger_step=1000)
    adapter.detach()
    return found


# bfloat16 has three bits less to be right in.
@pytest.mark.parametrize(("dtype", "distance"), [(mx.float16, 0.04), (mx.bfloat16, 0.3)])
def test_half_precision_keeps_the_loss_and_the_small_gradients(tiny_folder, dtype, distance):
    with load_by_name(str(tiny_folder)) as whole:
        parts, gradients = small_gradients(whole)
    model, tokenizer = load(str(tiny_folder))
    model.set_dtype(dtype)
    with ChatModel(model, tokenizer, resolve_model(str(tiny_folder))) as half:
        half_parts, half_gradients = small_gradients(half)
    assert half_parts.dtype == np.float32
    assert half_parts == pytest.approx(parts, rel=0.01, abs=1e-6)
    for name, value in gradients.items():
        assert half_gradients[name].dtype == np.float32
        assert np.linalg.norm(half_gradients[name] - value) < distance * np.linalg.norm(value), name
        assert (half_gradients[name] != 0).mean() > 0.99 * (value != 0).mean(), name


# Drawing tokens.


def test_a_gpu_draws_the_tokens_that_the_host_draws():
    rows, vocabulary = 64, 5000
    logits = random_source(0, "logits").normal(0, 3, (rows, vocabulary)).astype(np.float32)
    temperatures = [0.0, 0.3, 0.8, 1.5] * (rows // 4)
    least = [0.0, 0.05, 0.3, 0.05] * (rows // 4)
    for draw in range(10):
        keys = [f"{draw}/{row}" for row in range(rows)]
        wanted = [
            draw_token(scores, temperature, min_p, random_source(1, key))
            for scores, temperature, min_p, key in zip(logits, temperatures, least, keys, strict=True)
        ]
        drawn = draw_tokens(mx.array(logits), temperatures, least, [random_source(1, key) for key in keys])
        assert drawn.tolist() == wanted


def test_the_last_share_can_be_drawn_and_nothing_behind_it():
    class Last:
        def random(self):
            return 1 - 2**-53

    logits = mx.array([[5.0, 5.0, -50.0, 5.0, -50.0]])
    assert draw_tokens(logits, [1.0], [0.05], [Last()]).tolist() == [3]


def test_greedy_rows_take_the_first_of_equals_without_any_random_number():
    logits = np.array([[1.0, 4.0, 4.0, 2.0]], np.float32)
    assert draw_tokens(mx.array(logits), [0.0], [0.05], [None]).tolist() == [
        draw_token(logits[0], 0, 0.05, None)
    ]


# Answers.


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_answers_are_the_same_where_the_device_draws_them(tiny_model, on_a_gpu, temperature, monkeypatch):
    requests = asked(tiny_model, temperature)
    tiny_model.decode_batch_size = 8
    on_the_device = generate(tiny_model, requests, 3)
    monkeypatch.undo()
    assert on_the_device == generate(tiny_model, requests, 3)
    assert len({answer.text for answer in on_the_device}) > 5


class Host:
    """NumPy, as the code that decodes sees it: each array that it reads from the device is counted."""

    def __init__(self):
        self.reads = 0

    def array(self, *given, **options):
        self.reads += 1
        return np.array(*given, **options)


def test_a_token_is_waited_for_once_and_the_next_step_is_queued_before(tiny_model, on_a_gpu, monkeypatch):
    host, order = Host(), []
    monkeypatch.setattr(batches_of_rows, "np", host)
    queue, read = mx.async_eval, host.array
    monkeypatch.setattr(mx, "async_eval", lambda *given: order.append("queued") or queue(*given))
    monkeypatch.setattr(host, "array", lambda *given: order.append("read") or read(*given))
    waits = []
    evaluate = mx.eval
    monkeypatch.setattr(mx, "eval", lambda *given: waits.append(1) or evaluate(*given))
    tiny_model.stop_tokens = frozenset()
    request = Request("a", chat_prompt(tiny_model, QUESTIONS[0]), 10)
    tokens = [token for _, token in decode(tiny_model, [request], 0)]
    assert len(tokens) == 10
    assert host.reads == 10
    assert len(waits) == 1  # for the prompt
    # One step is always ahead, but for the last token, behind which none is needed.
    assert order == ["queued"] + ["queued", "read"] * 9 + ["read"]


def test_rows_that_copy_their_prefix_say_the_same_as_rows_that_share_it(tiny_model, monkeypatch):
    requests = asked(tiny_model)
    shared = generate(tiny_model, requests, 0)
    monkeypatch.setattr(batches_of_rows, "copies_prefix", lambda model: True)
    assert generate(tiny_model, requests, 0) == shared


@pytest.mark.parametrize(("shared", "copied", "room"), [(2, 1, 2**40), (1, 2, 2**40), (2, 1, 1)])
def test_the_faster_way_to_a_prefix_is_measured_once_where_memory_is_enough(
    tiny_model, monkeypatch, shared, copied, room
):
    timed = []

    def seconds(model, tokens, caches):
        timed.append(caches)
        return shared if isinstance(caches[0], GrowingRows) else copied

    monkeypatch.setattr(prefix_copies, "current_device", lambda: GPU)
    monkeypatch.setattr(prefix_copies, "room_of", lambda device: room)
    monkeypatch.setattr(prefix_copies, "decoding_seconds", seconds)
    monkeypatch.setattr(
        measured, "current_device", lambda: Device("metal", f"{shared} {copied} {room}", 0, 1)
    )
    tiny_model.decode_batch_size = 16
    is_faster = copied < shared and room > 1
    assert prefix_copies.copies_prefix(tiny_model) == is_faster
    assert bool(timed) == (room > 1)
    timed.clear()
    tiny_model.copies_prefix = None  # as in another process
    assert prefix_copies.copies_prefix(tiny_model) == is_faster and not timed


def test_samples_of_one_prompt_compute_it_once(tiny_model, computed):
    prompts = [chat_prompt(tiny_model, text) for text in (QUESTIONS[0], f"{QUESTIONS[1]} {SENTENCES[0]}")]
    requests = [
        Request(f"{number}/{sample}", prompt, 8, 0.9)
        for number, prompt in enumerate(prompts)
        for sample in range(5)
    ]
    alone = [generate(tiny_model, [request], 0)[0] for request in requests]
    computed.clear()
    assert generate(tiny_model, requests, 0) == alone
    assert computed[0][0] == 2
