"""nanochat's transformer for Hugging Face.   in: input_ids   out: logits   who calls: transformers

This file travels with a model that transformers does not know: `from_pretrained(...,
trust_remote_code=True)` runs it.  It needs torch and transformers and nothing else.  Every choice
of its mathematics stands in config.json under "nanochat"; nanochat/model/gpt.py explains them.

    e  = norm(embedding[token])
    x  = e + smear * sigmoid(gate(e)) * e[previous token]
    for each block:  x = residual * x + input * x0
                     x = x + attention(norm(x));  x = x + mlp(norm(x))
    x  = x - backout * x[middle block]
    logits = cap * tanh(head(norm(x)) / cap)

Read next: checkpoint/huggingface.py of nanochat (who writes the directory).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer
from transformers.modeling_outputs import CausalLMOutputWithPast

__all__ = ["NanoChatGPTConfig", "NanoChatGPTForCausalLM"]


class NanoChatGPTConfig(PretrainedConfig):
    """Sizes under the names transformers uses; under `nanochat`, every choice there is."""

    model_type = "nanochat_gpt"
    keys_to_ignore_at_inference = ["past_key_values"]
    use_cache = True


class _Attention(nn.Module):
    """Causal attention; a query sees itself and at most `window` tokens to its left."""

    def __init__(self, choices: dict, layer: int) -> None:
        super().__init__()
        self.choices, self.layer = choices, layer
        width, head_dim = choices["model_dim"], choices["head_dim"]
        self.query = nn.Linear(width, choices["num_heads"] * head_dim, bias=False)
        self.key = nn.Linear(width, choices["num_kv_heads"] * head_dim, bias=False)
        self.value = nn.Linear(width, choices["num_kv_heads"] * head_dim, bias=False)
        self.output = nn.Linear(choices["num_heads"] * head_dim, width, bias=False)
        if _has_value_embedding(choices, layer):
            channels = choices["value_embedding"]["gate_channels"]
            self.value_gate = nn.Linear(channels, choices["num_kv_heads"], bias=False)

    def forward(
        self,
        x: Tensor,
        value_embedding: Tensor | None,
        rotary: tuple[Tensor, Tensor],
        mask: Tensor | None,
        cache: Cache | None,
    ) -> Tensor:
        """x (batch, new, width), mask (batch or 1, 1, new, all) or None: all before -> as x."""
        choices = self.choices
        q, k, v = (
            linear(x).unflatten(-1, (-1, choices["head_dim"]))
            for linear in (self.query, self.key, self.value)
        )
        if value_embedding is not None:
            gate = choices["value_embedding"]
            amount = torch.sigmoid(self.value_gate(x[..., : gate["gate_channels"]]))
            v = v + (gate["gate_scale"] * amount).unsqueeze(-1) * value_embedding.view(v.shape)
        q, k = (self._position(part, *rotary).transpose(1, 2) for part in (q, k))
        v = v.transpose(1, 2)
        if cache is not None:
            k, v = cache.update(k, v, self.layer)
        groups = choices["num_heads"] // choices["num_kv_heads"]
        if groups > 1:
            k, v = (part.repeat_interleave(groups, dim=1) for part in (k, v))
        is_causal = mask is None and q.size(2) > 1
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal)
        return self.output(y.transpose(1, 2).flatten(-2))

    def _position(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotated by minus the angle, then normed, then scaled."""
        first, second = x.chunk(2, dim=-1)
        x = torch.cat((first * cos + second * sin, second * cos - first * sin), dim=-1)
        x = _norm(x, self.choices)
        return x if self.choices["qk_scale"] == 1.0 else x * self.choices["qk_scale"]


class _MLP(nn.Module):
    """Expand four times, square what is positive, contract."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.expand = nn.Linear(width, 4 * width, bias=False)
        self.contract = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., width) -> as x."""
        return self.contract(F.relu(self.expand(x)).square())


class _Block(nn.Module):
    """Attention, then MLP, each on the normed stream and added to it."""

    def __init__(self, choices: dict, layer: int) -> None:
        super().__init__()
        self.choices = choices
        self.attention = _Attention(choices, layer)
        self.mlp = _MLP(choices["model_dim"])

    def forward(self, x: Tensor, *attention_arguments: Any) -> Tensor:
        """x (batch, new, width) -> as x."""
        x = x + self.attention(_norm(x, self.choices), *attention_arguments)
        return x + self.mlp(_norm(x, self.choices))


class NanoChatGPTForCausalLM(PreTrainedModel, GenerationMixin):
    """A decoder-only transformer; its weights have the names they have in nanochat."""

    config_class = NanoChatGPTConfig
    base_model_prefix = "model"
    _no_split_modules = ["_Block"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True

    def __init__(self, config: NanoChatGPTConfig) -> None:
        super().__init__(config)
        choices = config.nanochat
        self.choices = choices
        num_layers, width = choices["num_layers"], choices["model_dim"]
        rows = -(-choices["vocab_size"] // choices["vocab_padding"]) * choices["vocab_padding"]
        self.embedding = nn.Embedding(rows, width)
        self.blocks = nn.ModuleList(_Block(choices, layer) for layer in range(num_layers))
        self.head = nn.Linear(width, rows, bias=False)
        if choices["residual_lambdas"]:
            self.residual_lambdas = nn.Parameter(torch.ones(num_layers))
            self.input_lambdas = nn.Parameter(torch.zeros(num_layers))
        value_width = choices["num_kv_heads"] * choices["head_dim"]
        self.value_embeddings = nn.ModuleDict(
            {
                str(layer): nn.Embedding(rows, value_width)
                for layer in range(num_layers)
                if _has_value_embedding(choices, layer)
            }
        )
        if choices["smear_channels"] is not None:
            self.smear_gate = nn.Linear(choices["smear_channels"], 1, bias=False)
            self.smear_lambda = nn.Parameter(torch.zeros(1))
        if choices["backout"]:
            self.backout_lambda = nn.Parameter(torch.zeros(1))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The token table."""
        return self.embedding

    def get_output_embeddings(self) -> nn.Module:
        """The head, which is another table."""
        return self.head

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """input_ids (batch, new), attention_mask (batch, all): 0 where a row is padded -> logits.

        Raises: ValueError for a cache of fixed size, or one that another model has filled.
        """
        choices = self.choices
        cache = past_key_values
        if cache is None and (self.config.use_cache if use_cache is None else use_cache):
            cache = DynamicCache()
        if cache is not None and cache.is_compileable:
            raise ValueError("a cache of fixed size is not supported: use a DynamicCache")
        num_past = cache.get_seq_length() if cache is not None else 0
        real = self._real(attention_mask, num_past + input_ids.size(1))
        x = first = self._embed(self._tokens(input_ids, cache, num_past), real, num_past)
        if position_ids is None:
            steps = torch.arange(input_ids.size(1), device=x.device)
            position_ids = (num_past + steps).unsqueeze(0)
        rotary = self._rotary(position_ids, x.dtype)
        masks = {w: self._mask(w, x, num_past, real) for w in set(choices["windows"])}
        middle = None
        for layer, block in enumerate(self.blocks):
            if choices["residual_lambdas"]:
                x = self.residual_lambdas[layer] * x + self.input_lambdas[layer] * first
            has_table = _has_value_embedding(choices, layer)
            value = self.value_embeddings[str(layer)](input_ids) if has_table else None
            x = block(x, value, rotary, masks[choices["windows"][layer]], cache)
            if choices["backout"] and layer == choices["num_layers"] // 2:
                middle = x
        if middle is not None:
            x = x - self.backout_lambda * middle
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self._logits(_norm(x, choices)[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=choices["vocab_size"], **kwargs
            )
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=cache)

    def _real(self, attention_mask: Tensor | None, num_tokens: int) -> Tensor | None:
        """Which of all tokens are no padding; None where all of them are."""
        if attention_mask is None or attention_mask.all():
            return None
        if attention_mask.shape[1:] != (num_tokens,):
            raise ValueError(
                f"attention_mask is {tuple(attention_mask.shape)}, expected (batch, {num_tokens})"
            )
        return attention_mask.bool()

    def _tokens(self, input_ids: Tensor, cache: Cache | None, num_past: int) -> Tensor:
        """All tokens so far.

        Smear needs the token before the first new one.  The cache keeps tokens as the keys of one
        layer more, so that reordering, repeating and cropping it treats them like the rest.
        """
        if cache is None or self.choices["smear_channels"] is None:
            return input_ids
        while len(cache.layers) <= self.choices["num_layers"]:
            cache.layers.append(DynamicLayer())
        layer = cache.layers[self.choices["num_layers"]]
        if layer.get_seq_length() != num_past:
            raise ValueError(f"the cache holds {num_past} tokens that this model has not seen")
        keys = input_ids[:, None, :, None]
        return layer.update(keys, keys)[0][:, 0, :, 0]

    def _embed(self, tokens: Tensor, real: Tensor | None, num_past: int) -> Tensor:
        """The stream of the new tokens, mixed with the embedding of those before them."""
        if self.choices["smear_channels"] is None:
            return _norm(self.embedding(tokens), self.choices)
        e = _norm(self.embedding(tokens[:, max(num_past - 1, 0) :]), self.choices)
        if num_past == 0:
            e = F.pad(e, (0, 0, 1, 0))  # nothing is before the first token
        before, e = e[:, :-1], e[:, 1:]
        if real is not None:
            is_real = F.pad(real, (1, 0))[:, num_past:-1]
            before = before * is_real.unsqueeze(-1)
        gate = torch.sigmoid(self.smear_gate(e[..., : self.choices["smear_channels"]]))
        return e + self.smear_lambda * gate * before

    def _rotary(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines, (batch or 1, new, 1, head_dim / 2)."""
        head_dim = self.choices["head_dim"]
        channels = torch.arange(0, head_dim, 2, dtype=torch.float32)
        frequencies = 1.0 / (self.choices["rope_base"] ** (channels / head_dim))
        angles = positions[:, :, None, None].float() * frequencies.to(positions.device)
        cos, sin = angles.cos(), angles.sin()
        if self.choices["rope_dtype"] == "bfloat16":
            cos, sin = cos.bfloat16(), sin.bfloat16()
        return cos.to(dtype), sin.to(dtype)

    def _mask(
        self, window: int | None, x: Tensor, num_past: int, real: Tensor | None
    ) -> Tensor | None:
        """True where a new token sees a token; None where that is all tokens before it."""
        num_new = x.size(1)
        num_all = num_past + num_new
        is_whole = window is None or window >= num_all - 1
        if is_whole and real is None and (num_past == 0 or num_new == 1):
            return None
        rows = torch.arange(num_past, num_all, device=x.device)[:, None]
        distance = rows - torch.arange(num_all, device=x.device)
        visible = distance >= 0
        if window is not None:
            visible = visible & (distance <= window)
        if real is None:
            return visible[None, None]
        # Padding sees itself: a row that sees nothing would be NaN, and spread.
        return (visible & real[:, None, None, :]) | (distance == 0)

    def _logits(self, x: Tensor) -> Tensor:
        logits = self.head(x)[..., : self.choices["vocab_size"]].float()
        cap = self.choices["logit_softcap"]
        return cap * torch.tanh(logits / cap)


def _norm(x: Tensor, choices: dict) -> Tensor:
    """x scaled to unit root mean square over its last dimension."""
    return F.rms_norm(x, (x.size(-1),), eps=choices["norm_eps"])


def _has_value_embedding(choices: dict, layer: int) -> bool:
    """Whether a layer has a table of values by token: every second one, the last always."""
    return choices["value_embedding"] is not None and layer % 2 == (choices["num_layers"] - 1) % 2
