"""Sizes and switches of a FlashLM model, under the names that they have in its own settings."""
from transformers import PretrainedConfig


class FlashLMConfig(PretrainedConfig):
    model_type = "flashlm"
    attribute_map = {"hidden_size": "dim", "num_hidden_layers": "blocks"}

    def __init__(
        self,
        vocab_size=256,
        dim=64,
        ffn_hidden=128,
        mixers=("conv",),  # one of each block: conv, shortconv, attention, delta or leaky
        kernel_size=4,  # taps of conv
        shortconv={"kernel_size": 4},
        attention={"heads": 4, "window": 256, "rope_base": 10000.0},
        delta={
            "form": "published",  # or original
            "rule": "canonical",  # or undecayed
            "heads": 4,
            "expand_k": 0.75,  # width of all keys over dim
            "expand_v": 1.5,
            "conv": 4,
            "negative_eigenvalues": False,
            "norm_eps": 1e-5,
        },
        reset=False,  # whether every document starts from a fresh state
        block_norm=True,  # a norm before each mixer and GLU,
        matrix_norm=False,  # before each matrix,
        sub_norm=False,  # before the matrix that ends a mixer or GLU
        norm_eps=1e-6,
        activation="silu",  # or relu2
        x0=False,  # the embedding again before each block
        bigram=0,  # rows of a table looked up by two tokens
        layer_embeddings=False,  # a table looked up by the token before each block
        pointer=0,  # rows before a row whose next tokens it may point at
        pointer_words=False,  # whether a word after a space, and the same after a quote, is one:
        pointer_twins=(),  # pairs of tokens, and
        pointer_opens=(),  # tokens after which no space stands
        logit_softcap=0.0,
        **kwargs,
    ):
        self.vocab_size, self.dim, self.ffn_hidden, self.mixers, self.blocks = vocab_size, dim, ffn_hidden, list(mixers), len(mixers)
        self.kernel_size, self.shortconv, self.attention, self.delta = kernel_size, shortconv, attention, delta
        self.reset, self.block_norm, self.matrix_norm, self.sub_norm, self.norm_eps = reset, block_norm, matrix_norm, sub_norm, norm_eps
        self.activation, self.x0, self.bigram, self.layer_embeddings = activation, x0, bigram, layer_embeddings
        self.pointer, self.logit_softcap = pointer, logit_softcap
        self.pointer_words, self.pointer_twins, self.pointer_opens = pointer_words, list(pointer_twins), list(pointer_opens)
        kwargs.pop("blocks", None)
        super().__init__(**kwargs)
