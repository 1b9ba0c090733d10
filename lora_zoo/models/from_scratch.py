"""`python -m lora_zoo.models.from_scratch --text FILE --out DIR`: an untrained base for one's own text.

Trains a byte-level BPE tokenizer on the text and writes a small Llama-architecture model with random weights
beside it, in Hub format. Train it with `+variant=full merge=true` first; adapters then have a base to adapt.
"""

import argparse
from pathlib import Path


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m lora_zoo.models.from_scratch", description=__doc__)
    parser.add_argument("--text", type=Path, nargs="+", required=True, help="text to learn the tokens from")
    parser.add_argument("--out", type=Path, required=True, help="the folder to make")
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    for path in given.text:
        if not path.is_file():
            parser.error(f"{path} is no file")
    if given.hidden % (2 * given.heads):
        parser.error(f"--hidden {given.hidden} must be a multiple of twice --heads {given.heads}")
    make(**vars(given))
    print(f"an untrained model in {given.out}")


def make(
    *, text: list[Path], out: Path, hidden: int, layers: int, heads: int, vocabulary: int, seed: int
) -> None:
    """Write tokenizer and model to `out`; the weights depend on `seed` and the sizes alone."""
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    bpe = ByteLevelBPETokenizer()
    bpe.train([str(path) for path in text], vocab_size=vocabulary, special_tokens=["<pad>", "<s>", "</s>"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(seed)
    LlamaForCausalLM(config).save_pretrained(out)
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    main()
