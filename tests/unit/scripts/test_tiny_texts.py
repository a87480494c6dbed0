"""The plain data of the tiny model."""

# ruff: noqa: RUF001 - DeepSeek spells its special tokens with a fullwidth bar

from __future__ import annotations

from types import ModuleType

import pytest


def test_lessons_are_eight_distinct_questions_with_distinct_answers(tiny_texts: ModuleType) -> None:
    lessons = tiny_texts.LESSONS
    assert len(lessons) == 8
    for texts in (
        [lesson.id for lesson in lessons],
        [lesson.question for lesson in lessons],
        [lesson.answer for lesson in lessons] + [lesson.wrong for lesson in lessons],
    ):
        assert len(set(texts)) == len(texts)
    for lesson in lessons:
        assert lesson.question.endswith("?")
        assert lesson.answer[0].isupper()
        assert lesson.answer.endswith(".")


def test_the_prompt_is_deepseek_v4s_own_rendering(tiny_texts: ModuleType) -> None:
    # As vllm/tokenizers/deepseek_v4_encoding.py renders one user message without thinking.
    assert tiny_texts.render_prompt("Why?") == ("<｜begin▁of▁sentence｜><｜User｜>Why?<｜Assistant｜></think>")
    assert tiny_texts.messages("Why?") == [{"role": "user", "content": "Why?"}]


def test_the_chat_template_renders_to_the_same_prompt(tiny_texts: ModuleType) -> None:
    jinja2 = pytest.importorskip("jinja2")
    rendered = (
        jinja2.Environment(autoescape=False)
        .from_string(tiny_texts.CHAT_TEMPLATE)
        .render(
            messages=tiny_texts.messages("Why?"),
            bos_token=tiny_texts.BOS,
            eos_token=tiny_texts.EOS,
            add_generation_prompt=True,
        )
    )
    assert rendered == tiny_texts.render_prompt("Why?")


def test_config_fits_both_targets(tiny_texts: ModuleType) -> None:
    config = tiny_texts.model_config(512, "bfloat16")
    assert config["hidden_size"] in {1280, 2560, 4096, 7168}, "AITER's tested sizes"
    assert config["hc_mult"] == 4
    assert config["n_routed_experts"] == 64, "vLLM's CPU hash_topk takes no fewer"
    assert len(config["compress_ratios"]) == config["num_hidden_layers"]
    assert set(config["compress_ratios"]) == {0, 4, 128}
    assert config["head_dim"] == 512
    assert config["dtype"] == "bfloat16"
    assert "quantization_config" not in config
    for name, token in (("bos", tiny_texts.BOS), ("eos", tiny_texts.EOS), ("pad", tiny_texts.PAD)):
        assert tiny_texts.SPECIAL_TOKENS[config[f"{name}_token_id"]] == token
        assert tiny_texts.generation_config()[f"{name}_token_id"] == config[f"{name}_token_id"]
        assert tiny_texts.tokenizer_config(64)[f"{name}_token"] == token


@pytest.mark.parametrize(
    ("theirs", "native"),
    [
        ("model.embed_tokens.weight", "embed.weight"),
        ("lm_head.weight", "head.weight"),
        ("model.norm.weight", "norm.weight"),
        ("model.hc_head.hc_scale", "hc_head_scale"),
        ("model.layers.0.input_layernorm.weight", "layers.0.attn_norm.weight"),
        ("model.layers.1.self_attn.kv_norm.weight", "layers.1.attn.kv_norm.weight"),
        ("model.layers.2.self_attn.sinks", "layers.2.attn.attn_sink"),
        ("model.layers.2.attn_hc.fn", "layers.2.hc_attn_fn"),
        ("model.layers.12.ffn_hc.scale", "layers.12.hc_ffn_scale"),
        (
            "model.layers.1.self_attn.compressor.kv_norm.weight",
            "layers.1.attn.compressor.norm.weight",
        ),
        ("model.layers.1.self_attn.compressor.position_bias", "layers.1.attn.compressor.ape"),
        (
            "model.layers.1.self_attn.compressor.indexer.gate_proj.weight",
            "layers.1.attn.indexer.compressor.wgate.weight",
        ),
        (
            "model.layers.1.self_attn.compressor.indexer.q_b_proj.weight",
            "layers.1.attn.indexer.wq_b.weight",
        ),
        ("model.layers.0.mlp.gate.tid2eid", "layers.0.ffn.gate.tid2eid"),
        ("model.layers.1.mlp.gate.e_score_correction_bias", "layers.1.ffn.gate.bias"),
        (
            "model.layers.1.mlp.shared_experts.up_proj.weight",
            "layers.1.ffn.shared_experts.w3.weight",
        ),
    ],
)
def test_native_names(tiny_texts: ModuleType, theirs: str, native: str) -> None:
    assert tiny_texts.native_name(theirs) == native


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.mlp.experts.down_proj",
        "model.layers.0.self_attn.new_thing.weight",
        "model.layers.x.self_attn.sinks",
        "something",
    ],
)
def test_a_name_it_does_not_know_is_an_error(tiny_texts: ModuleType, name: str) -> None:
    with pytest.raises(KeyError, match=name):
        tiny_texts.native_name(name)


def test_expert_names(tiny_texts: ModuleType) -> None:
    stem = "model.layers.2.mlp.experts"
    assert tiny_texts.expert_names(f"{stem}.gate_up_proj", 7) == (
        "layers.2.ffn.experts.7.w1.weight",
        "layers.2.ffn.experts.7.w3.weight",
    )
    assert tiny_texts.expert_names(f"{stem}.down_proj", 0) == ("layers.2.ffn.experts.0.w2.weight",)
    assert tiny_texts.expert_names("model.layers.2.mlp.gate.weight", 0) is None


@pytest.mark.parametrize(
    ("native", "float32"),
    [
        ("layers.0.hc_attn_fn", True),
        ("hc_head_base", True),
        ("layers.0.attn.attn_sink", True),
        ("layers.0.attn.indexer.compressor.ape", True),
        ("layers.0.ffn.gate.bias", True),
        ("layers.0.ffn.gate.weight", False),
        ("layers.0.attn.wkv.weight", False),
        ("norm.weight", False),
    ],
)
def test_float32_weights(tiny_texts: ModuleType, native: str, float32: bool) -> None:
    assert tiny_texts.is_float32(native) is float32
