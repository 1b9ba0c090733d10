"""Files that PEFT wrote in ways that are easily misread: old layouts, other targets, copies of the base."""

import json

import peft
import pytest
from safetensors.torch import load_file, save_file

from lora_zoo import load_adapter, updates
from lora_zoo.formats.peft.experts import version_of
from lora_zoo.formats.peft.forms import PeftFolder
from lora_zoo.formats.peft.write import CONFIG, WEIGHTS
from tests.adapters.test_parity_hosts import MIXTRAL, evaluated


def configured(folder, **changes):
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def experts(tmp_path):
    """An adapter of stacked experts by PEFT, and the logits that it gives."""
    base, x = MIXTRAL.base().eval(), MIXTRAL.inputs(0)
    config = peft.LoraConfig(
        r=2,
        target_modules=["q_proj"],
        target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
        init_lora_weights=False,
    )
    theirs = peft.get_peft_model(base, config).eval()
    theirs.save_pretrained(tmp_path)
    return tmp_path, evaluated(theirs, x)


def as_in_018(folder):
    """Give the file PEFT 0.18's layout: A reads the first side of each expert's matrix, B writes the other."""
    tensors = load_file(folder / WEIGHTS)
    for name in [name for name in tensors if ".experts." in name and "lora_A" in name]:
        A, B = tensors[name], tensors[name.replace("lora_A", "lora_B")]
        E = len(A) // 2
        A_ERI, B_EOR = A.view(E, 2, -1), B.view(len(B), 2, E).permute(2, 0, 1)
        tensors[name] = B_EOR.mT.flatten(0, 1).contiguous()
        tensors[name.replace("lora_A", "lora_B")] = A_ERI.mT.permute(1, 2, 0).flatten(1).contiguous()
    save_file(tensors, folder / WEIGHTS)


@pytest.mark.parametrize("version", ["0.18.1", "0.19.0", "0.19.1", "0.20.0", "0.21.2"])
def test_the_layout_of_experts_is_that_of_the_version(experts, version):
    """The files of real 0.18.1, 0.19.0, 0.19.1 and 0.20.0 were read with a difference of 0.0."""
    folder, theirs = experts
    if version < "0.19.1":
        as_in_018(folder)
    configured(folder, peft_version=version)
    base = MIXTRAL.base().eval()
    load_adapter(base, folder)
    assert (evaluated(base, MIXTRAL.inputs(0)) - theirs).abs().max() <= 3e-5


@pytest.mark.parametrize("version", [None, "", "0.22.0", "0.20.0.dev0", "1.18.1", "0.16.0", ["0.18.1"]])
def test_a_layout_that_is_not_known_is_refused(experts, version):
    folder, _ = experts
    configured(folder, peft_version=version)
    with pytest.raises(ValueError, match=r"peft_version=.* write the version that trained the adapter into"):
        load_adapter(MIXTRAL.base(), folder)
    with pytest.raises(ValueError, match="the layout of experts depends on the version"):
        version_of(PeftFolder(folder, {"peft_version": version}, {}))


def test_spectra_of_experts_take_the_base_from_the_configuration(experts, tmp_path):
    folder, _ = experts
    MIXTRAL.base().save_pretrained(tmp_path / "base")
    configured(folder, base_model_name_or_path=str(tmp_path / "base"), task_type="CAUSAL_LM")
    assert any(".experts." in name for name in updates.read(folder))
