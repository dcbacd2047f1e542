"""Paths that quantise or train a checkpoint: bitsandbytes, torchao, PEFT, QLoRA, Trainer, TRL, Liger."""

import importlib
import os
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    TorchAoConfig,
    Trainer,
    TrainingArguments,
)

from deployment.case import Case, NotRunError, difference, train, training_batch


def plainly_computed(model: Any) -> Any:
    """The model without bitsandbytes' fast path for CPUs with bf16, which fails for rows shorter than its blocks."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def eight_bit(case: Case) -> float:
    """bitsandbytes in 8 bit."""
    return case.difference_of(plainly_computed(case.load(quantization_config=BitsAndBytesConfig(load_in_8bit=True))))


NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}


def four_bit(case: Case) -> float:
    """bitsandbytes in nf4."""
    return case.difference_of(plainly_computed(case.load(quantization_config=BitsAndBytesConfig(**NF4))))


def torchao(case: Case) -> float:
    """torchao, int8 weights."""
    quantization: Any = importlib.import_module("torchao.quantization")
    return case.difference_of(case.load(quantization_config=TorchAoConfig(quantization.Int8WeightOnlyConfig())))


def adapted(model: Any) -> Any:
    """The model with an adapter on all linear maps."""
    torch.manual_seed(0)
    return get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))


@torch.no_grad()
def logits(model: Any, case: Case) -> torch.Tensor:
    return model.eval()(**case.inputs).logits


def lora(case: Case) -> float:
    """LoRA of PEFT, trained, merged, saved and loaded again: against the adapted model."""
    model = adapted(case.load())
    train(model, training_batch(case))
    expected = logits(model, case)
    model.merge_and_unload().save_pretrained(case.scratch)
    return difference(logits(AutoModelForCausalLM.from_pretrained(case.scratch), case), expected)


def qlora(case: Case) -> float:
    """LoRA on nf4, trained; the adapter is saved and loaded again on the model in nf4."""
    config = BitsAndBytesConfig(**NF4)

    def base() -> Any:
        loaded = plainly_computed(case.load(quantization_config=config))
        return prepare_model_for_kbit_training(loaded, use_gradient_checkpointing=False)

    model = adapted(base())
    train(model, training_batch(case))
    model.save_pretrained(str(case.scratch))
    return difference(logits(PeftModel.from_pretrained(base(), str(case.scratch)), case), logits(model, case))


def trainer(case: Case) -> float:
    """transformers' Trainer, stopped after two steps of four and resumed: against four steps without a stop."""
    rows = [{"input_ids": text, "labels": text} for text in training_batch(case)["input_ids"].repeat(4, 1)]

    def arguments(folder: str, steps: int) -> TrainingArguments:
        return TrainingArguments(
            str(case.scratch / folder), max_steps=steps, save_steps=2, use_cpu=True, report_to=[],
            per_device_train_batch_size=2, lr_scheduler_type="constant", disable_tqdm=True, logging_steps=1,
        )  # fmt: skip

    models = [case.load() for _ in range(3)]
    Trainer(models[0], arguments("whole", 4), train_dataset=rows).train()  # pyright: ignore[reportArgumentType]
    Trainer(models[1], arguments("parts", 2), train_dataset=rows).train()  # pyright: ignore[reportArgumentType]
    second = Trainer(models[2], arguments("parts", 4), train_dataset=rows)  # pyright: ignore[reportArgumentType]
    second.train(resume_from_checkpoint=True)
    expected = logits(models[0], case)
    assert case.difference(expected) > 0, "nothing was trained"
    return difference(logits(models[2], case), expected)


def sft(case: Case, adapter: LoraConfig | None = None) -> float:
    """SFTTrainer of TRL; the trained model is saved and loaded again."""
    trl: Any = importlib.import_module("trl")
    rows: Any = importlib.import_module("datasets").Dataset.from_list(
        [{"text": "Once upon a time there was a little cat. She liked to play."}] * 8
    )
    config = trl.SFTConfig(
        str(case.scratch), max_steps=3, use_cpu=True, bf16=False, report_to=[], per_device_train_batch_size=2,
        max_length=32, save_strategy="no",
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(case.folder)
    tokenizer.pad_token = tokenizer.eos_token
    sft_trainer = trl.SFTTrainer(
        case.load(), config, train_dataset=rows, processing_class=tokenizer, peft_config=adapter
    )
    sft_trainer.train()
    model = sft_trainer.model if adapter is None else sft_trainer.model.merge_and_unload()
    expected = logits(model, case)
    assert case.difference(expected) > 0, "nothing was trained"
    model.save_pretrained(case.scratch / "trained")
    return difference(logits(AutoModelForCausalLM.from_pretrained(case.scratch / "trained"), case), expected)


def sft_lora(case: Case) -> float:
    """The same with an adapter."""
    return sft(case, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))


def liger(case: Case) -> float:
    """Liger's kernel in the place of the MLPs' forward pass, by Triton's interpreter."""
    os.environ["TRITON_INTERPRET"] = "1"
    kernels: Any = importlib.import_module("liger_kernel.transformers")
    model = case.load()
    kernels.apply_liger_kernel_to_llama(rope=False, rms_norm=False, fused_linear_cross_entropy=False, model=model)
    triton: Any = importlib.import_module("triton.runtime.errors")
    try:
        return case.difference_of(model)  # an `InputError` says that the constants of a block have no place in it
    except triton.TritonError as error:
        raise NotRunError(f"mlpfusion lets it run, the kernel needs a GPU ({type(error).__name__})") from error
