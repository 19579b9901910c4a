"""Training on 4-bit weights: the gradients are those of the same weights in floats."""

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx.utils import tree_flatten
from mlx_lm import load
from mlx_lm.utils import dequantize_model

from tests.helpers import dataset_rows, negative_rows, strong_adapter
from unlearn_mlx.inference.adapters import Adapter, LoraShape, load_adapter
from unlearn_mlx.inference.chat_model import ChatModel
from unlearn_mlx.inference.fusing import fused_model
from unlearn_mlx.models.registry import resolve_model
from unlearn_mlx.runs.files import read_json
from unlearn_mlx.runs.records import NegativeRow, TrainingRow
from unlearn_mlx.sft.batches import make_batch, make_row, negative_row
from unlearn_mlx.sft.loss import Weights, loss_parts
from unlearn_mlx.sft.trainer import reference_top_k

SCALE = 4.0


def opened(folder, in_bits):
    """The model as a GPU has it, in 4 bits, or its very weights in floats; both compute in float32."""
    model, tokenizer = load(str(folder))
    model.set_dtype(mx.float32)  # scales first: half precision would round the product
    if not in_bits:
        model = dequantize_model(model)
    return ChatModel(model, tokenizer, resolve_model(str(folder)))


@pytest.fixture(scope="module", params=["llama3_folder", "qwen2_folder"])
def both(request):
    folder = request.getfixturevalue(request.param)
    return opened(folder, in_bits=True), opened(folder, in_bits=False)


def gradients_of(model):
    adapter = strong_adapter(model)
    rows = [make_row(model, TrainingRow.model_validate(entry)) for entry in dataset_rows(6)]
    rows += [negative_row(model, NegativeRow.model_validate(entry)) for entry in negative_rows(2)]
    adapter.switch(False)
    references = reference_top_k(model, rows, [])
    adapter.switch(True)
    batch = make_batch(rows, references)
    found = nn.value_and_grad(model.model, lambda m, b: loss_parts(m, b, Weights(1.0, 1.0))[0])
    loss, gradients = found(model.model, batch)
    values = {name: np.array(value) for name, value in tree_flatten(gradients)}
    adapter.detach()
    return loss.item(), values


def test_gradients_on_4_bit_weights_equal_those_on_floats(both):
    (loss, found), (wanted_loss, wanted) = map(gradients_of, both)
    assert loss == pytest.approx(wanted_loss, rel=1e-4)
    assert found.keys() == wanted.keys() and all("lora" in name for name in found)
    for name, value in wanted.items():
        distance = np.linalg.norm(found[name] - value) / np.linalg.norm(value)
        assert np.linalg.norm(value) > 0 and distance < 2e-4, (name, distance)


def test_the_base_stays_in_4_bits_and_only_the_adapter_is_trained(both):
    in_bits, _ = both
    before = {name: np.array(value) for name, value in tree_flatten(in_bits.model.parameters())}
    adapter = strong_adapter(in_bits)
    assert {value.dtype for value in adapter.weights().values()} == {mx.float32}
    assert all(isinstance(layer.linear, nn.QuantizedLinear) for _, layer in adapter.layers())
    trainable = {name for name, _ in tree_flatten(in_bits.model.trainable_parameters())}
    assert trainable == set(adapter.weights())
    adapter.detach()
    after = dict(tree_flatten(in_bits.model.parameters()))
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], np.array(after[name])) for name in before)


def test_the_fused_result_is_the_weight_plus_scale_times_the_product(both, tmp_path):
    in_bits, in_floats = both
    adapter = strong_adapter(in_bits)
    adapter.save(tmp_path)
    layer_name, layer = adapter.layers()[0]
    product = np.array(layer.lora_a) @ np.array(layer.lora_b)
    adapter.detach()
    assert read_json(tmp_path / "adapter_config.json")["lora_parameters"]["scale"] == SCALE
    fused, _, _ = fused_model(in_bits.source, tmp_path, None)
    plain = dict(tree_flatten(in_floats.model.parameters()))[f"{layer_name}.weight"]
    got = dict(tree_flatten(fused.parameters()))[f"{layer_name}.weight"]
    wanted = np.array(plain) + SCALE * product.T
    assert np.abs(np.array(got.astype(mx.float32)) - wanted).max() < 4e-3 * np.abs(wanted).max()


def test_a_saved_adapter_comes_back_in_half_precision(both, tmp_path):
    _, model = both
    adapter = Adapter(model.model, LoraShape(4, SCALE, 1000))
    adapter.save(tmp_path)
    adapter.detach()
    arrays = mx.load(str(tmp_path / "adapters.safetensors"))
    assert {array.dtype for array in arrays.values()} == {mx.float16}
    load_adapter(model.model, tmp_path).detach()
