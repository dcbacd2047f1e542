"""The head of a causal model reads the predicted tokens alone, with the loss and gradients of all tokens."""

import pytest
import torch
from mixtures import MIXTURES, mixture_model
from pico import PICO, others_slow, pico_model
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from mlpfusion.data.language.kind import LanguageModelling
from mlpfusion.data.language.labels import NOT_PREDICTED
from mlpfusion.data.language.predicted import head_at_predicted
from mlpfusion.data.language.task import LANGUAGE
from mlpfusion.errors import InputError

BATCH = {
    "input_ids": torch.tensor([[5, 6, 7, 8, 9, 10], [11, 12, 13, 14, 15, 16]]),
    "labels": torch.tensor([[5, -100, 7, 8, -100, -100], [-100, -100, -100, -100, 15, 16]]),
}
PREDICTED = 4  # the first token of a text is predicted by nothing


def same_loss_and_gradients(model, rtol=1e-5, atol=1e-7) -> torch.Tensor:
    """Logits inside, after a comparison of loss and gradients with those of all tokens."""
    found = []
    for inside in (False, True):
        model.zero_grad()
        if inside:
            with head_at_predicted(model, BATCH) as inputs:
                output = model(**inputs, use_cache=False)
        else:
            output = model(**BATCH, use_cache=False)
        output.loss.backward()
        found.append([output.loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    torch.testing.assert_close(found[1], found[0], rtol=rtol, atol=atol)  # transformers computes the loss in fp32
    return output.logits


CAUSAL = [name for name in PICO if PICO[name][0] in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and name != "bart"]


@pytest.mark.parametrize("name", others_slow(CAUSAL))
def test_loss_and_gradients_are_those_of_all_tokens(name):
    model = pico_model(name, AutoModelForCausalLM, dtype=torch.float64)
    assert same_loss_and_gradients(model).shape[:2] == (1, PREDICTED + 1)


@pytest.mark.parametrize("name", others_slow(MIXTURES, ("mixtral", "llama4_text")))
def test_the_loss_of_routers_stays_in_it(name):
    model = mixture_model(name)
    model.config.output_router_logits = True
    same_loss_and_gradients(model, rtol=1e-4, atol=1e-6)


def test_logits_are_those_of_the_same_tokens():
    model = pico_model("llama", AutoModelForCausalLM, dtype=torch.float64)
    with torch.no_grad():
        full = model(**BATCH).logits
        with head_at_predicted(model, BATCH) as inputs:
            packed = model(**inputs).logits
        assert model(**BATCH).logits.shape == full.shape  # nothing is left behind
    rows = torch.stack([full[0, 1], full[0, 2], full[1, 3], full[1, 4]])
    torch.testing.assert_close(packed[0, :PREDICTED], rows, rtol=1e-12, atol=1e-12)
    kept = LanguageModelling().kept(packed, BATCH["labels"], shifted=True)
    losses = cross_entropy(rows.float(), torch.tensor([7, 8, 15, 16]), reduction="none").double()
    torch.testing.assert_close(kept, torch.tensor([[losses[:2].sum(), 2], [losses[2:].sum(), 2]]).double())


def test_a_batch_without_predicted_tokens_counts_none():
    model = pico_model("llama", AutoModelForCausalLM)
    batch = BATCH | {"labels": torch.full_like(BATCH["labels"], NOT_PREDICTED)}
    with torch.no_grad(), head_at_predicted(model, batch) as inputs:
        logits = model(**inputs).logits
    assert LanguageModelling().kept(logits, batch["labels"], shifted=True).tolist() == [[0, 0], [0, 0]]


def test_a_loss_of_other_tokens_is_refused():
    model = pico_model("bart", AutoModelForCausalLM)
    with pytest.raises(InputError, match="`model` must have a loss .* that of this BartForCausalLM compares other"):
        LanguageModelling().check_model(model, LANGUAGE["language-modelling"])


@pytest.mark.parametrize("name", ["bart", "bert"])
def test_other_models_and_batches_stay_as_they_are(name):
    model = pico_model(name, AutoModelForSeq2SeqLM) if name == "bart" else pico_model(name)
    batch = BATCH if name == "bart" else {"input_ids": BATCH["input_ids"], "labels": torch.tensor([0, 1])}
    with head_at_predicted(model, batch) as inputs:
        assert inputs.keys() == batch.keys()
        assert all(inputs[key] is batch[key] for key in batch)
