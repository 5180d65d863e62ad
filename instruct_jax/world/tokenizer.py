"""The tokenizer of the world: one word, one token; trained in place and kept as a Hugging Face
folder.
"""

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from . import vocabulary as v
from .corpus import documents
from .instructions import SPLITS, prompts

PAD, BOS, EOS, UNK = SPECIALS = ("<pad>", "<bos>", "<eos>", "<unk>")  # ids 0, 1, 2, 3
CORPUS_TOKENS = 50_000
PROMPTS = 500  # of each split


def train_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A word-level tokenizer of all words in the texts.  It adds no special tokens by itself."""
    core = Tokenizer(models.WordLevel(unk_token=UNK))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordLevelTrainer(special_tokens=list(SPECIALS), show_progress=False)
    core.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        clean_up_tokenization_spaces=False,
    )


def world_texts(seed: int) -> list[str]:
    """Enough text to hold every word of the world, and the vocabulary itself so that none is left
    to chance.
    """
    asked = []
    for split in SPLITS:
        asked += [record["prompt"] for record in prompts(seed, PROMPTS, split)]
    return [
        *documents(seed, CORPUS_TOKENS),
        *asked,
        " ".join((*v.CONTENT, *v.RUDE, *v.PAST)),
        v.FLUFF_PREFIX,
        v.FLUFF_SUFFIX,
        v.UNKNOWN,
    ]


def save_tokenizer(seed: int, folder: Path | str) -> PreTrainedTokenizerFast:
    """Trains on the texts of this seed and saves for `AutoTokenizer.from_pretrained(folder)`."""
    tokenizer = train_tokenizer(world_texts(seed))
    tokenizer.save_pretrained(folder)
    return tokenizer
