"""The most frequent of GPT-2's tokens under ids of their own, from 4 on; all others are <unk>."""
import json
import shutil
from pathlib import Path

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizer


class FlashLMTokenizer(PreTrainedTokenizer):
    vocab_files_names = {"pairs_file": "gpt2.json", "ids_file": "ids.json"}
    model_input_names = ["input_ids", "attention_mask"]

    def __init__(self, pairs_file, ids_file, **kwargs):
        self.files = [Path(pairs_file), Path(ids_file)]
        self.pairs, ids = Tokenizer.from_file(str(pairs_file)), json.loads(Path(ids_file).read_text())
        self.tokens = dict(enumerate(["<pad>", "<unk>", "<bos>", "<|endoftext|>"]))
        self.tokens.update((ours, self.pairs.id_to_token(theirs)) for theirs, ours in enumerate(ids) if ours > 3)
        self.ids = {token: i for i, token in self.tokens.items()}
        super().__init__(**{"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", **kwargs})

    @property
    def vocab_size(self):
        return len(self.tokens)

    def get_vocab(self):
        return {**self.ids, **self.added_tokens_encoder}

    def _tokenize(self, text, **kwargs):
        return self.pairs.encode(text, add_special_tokens=False).tokens

    def _convert_token_to_id(self, token):
        return self.ids.get(token, 1)

    def _convert_id_to_token(self, index):
        return self.tokens.get(index, "<unk>")

    def convert_tokens_to_string(self, tokens):
        return self.pairs.decoder.decode(tokens)

    def save_vocabulary(self, save_directory, filename_prefix=None):
        there = [Path(save_directory) / file.name for file in self.files]
        for file, copy in zip(self.files, there):
            if file.resolve() != copy.resolve():
                shutil.copyfile(file, copy)
        return tuple(str(copy) for copy in there)
