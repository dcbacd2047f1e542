"""Windows of tokens: every token is predicted once, after what the window shows before it."""

import pytest
from pico import pico_config
from tiny_task import WORDS, tiny_tokenizer
from tokenizers import Regex, normalizers, processors

from mlpfusion.data.unlabelled.windows import Window, drawn_windows, token_windows, window_length
from mlpfusion.errors import InputError

CONFIG = pico_config("llama")
TEXTS = [" ".join(WORDS[:30]), " ".join(WORDS[30:50])]
IDS = list(range(4, 54))


def bare_tokenizer():
    """Without special tokens around a text."""
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.Sequence([])
    return tokenizer


def with_start():
    """With a special token before a text, as the tokenizers of Llama have."""
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A", special_tokens=[("[CLS]", 1)]
    )
    return tokenizer


def predicted(windows: list[Window]) -> list[int]:
    return [int(token) for one in windows for token in one.input_ids[-one.num_scored :]]


def test_windows_without_overlap_cut_the_stream_in_pieces():
    windows = token_windows(TEXTS, bare_tokenizer(), CONFIG, window=16)
    assert [one.input_ids.tolist() for one in windows] == [IDS[0:16], IDS[16:32], IDS[32:48], IDS[48:50]]
    assert [one.num_scored for one in windows] == [15, 15, 15, 1]


@pytest.mark.parametrize("stride", [1, 5, 8, 15])
def test_with_overlap_every_token_but_the_first_is_predicted_once(stride):
    windows = token_windows(TEXTS, bare_tokenizer(), CONFIG, window=16, stride=stride)
    assert predicted(windows) == IDS[1:]
    assert all(len(one.input_ids) == 16 for one in windows[:-1])
    # after the first window, each token has at least the overlap before it
    assert all(len(one.input_ids) - one.num_scored >= 16 - stride for one in windows[1:-1])


@pytest.mark.parametrize("stride", [None, 4])
def test_a_token_that_begins_every_text_begins_every_window_and_all_tokens_are_predicted(stride):
    windows = token_windows(TEXTS, with_start(), CONFIG, window=16, stride=stride)
    assert all(one.input_ids[0] == 1 and len(one.input_ids) <= 16 for one in windows)
    assert predicted(windows) == IDS


def test_only_the_first_tokens_are_taken():
    assert predicted(token_windows(TEXTS, with_start(), CONFIG, window=16, max_tokens=20)) == IDS[:20]


def test_texts_are_joined_by_an_empty_line():
    class Counting:
        """Gives the texts, character by character."""

        def __len__(self) -> int:
            return 1 << 20

        def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
            return {"input_ids": [ord(character) for character in text]}

    config = pico_config("llama")
    config.vocab_size = 1 << 20
    windows = token_windows(["ab c", "defgh"], Counting(), config, window=8)  # type: ignore[arg-type]
    assert "".join(chr(token) for one in windows for token in one.input_ids) == "ab c\n\ndefgh"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 51}, "`data` must hold at least the 51 tokens of a `window`, got 50"),
        ({"window": 16, "stride": 17}, "`stride` must be between 1 and 16, the tokens of a window, got 17"),
        ({"window": 16, "stride": 0}, "`stride` must be between 1 and 16, the tokens of a window, got 0"),
        ({"window": 16, "max_tokens": 15}, "`max_tokens` must be at least 16, the tokens of a window, got 15"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        token_windows(TEXTS, bare_tokenizer(), CONFIG, **options)


def test_the_ids_of_another_model_are_refused():
    small = pico_config("llama")
    small.vocab_size = 50
    with pytest.raises(InputError, match="53"):
        token_windows(TEXTS, bare_tokenizer(), small, window=16)


def test_the_default_window_is_what_the_model_takes_up_to_512():
    assert window_length(None, tiny_tokenizer(), CONFIG) == 64
    assert window_length(40, tiny_tokenizer(), CONFIG) == 40
    long = bare_tokenizer()
    long.model_max_length = 4096
    wide = pico_config("llama")
    wide.max_position_embeddings = 4096
    assert window_length(None, long, wide) == 512
    for asked in (7, 65):
        with pytest.raises(InputError, match=f"`window` must be between 8 and 64, what the model takes, got {asked}"):
            window_length(asked, tiny_tokenizer(), CONFIG)


def drawn(texts, tokenizer, num_windows=20, window=16, seed=0):
    return drawn_windows(texts, tokenizer, CONFIG, window=window, num_windows=num_windows, seed=seed).tolist()


@pytest.mark.parametrize("tokenizer", [bare_tokenizer(), with_start()], ids=["bare", "with a start token"])
def test_a_drawn_window_is_a_piece_of_the_text_read_in_a_circle(tokenizer):
    around = IDS * 3
    start = tokenizer("w1")["input_ids"][:-1]
    for texts in (TEXTS, [" ".join(TEXTS)]):
        windows = drawn(texts, tokenizer)
        assert len(windows) == 20
        assert all(len(one) == 16 and one[: len(start)] == start for one in windows)
        pieces = [one[len(start) :] for one in windows]
        assert all(one == around[one[0] - IDS[0] :][: len(one)] for one in pieces)
        assert len({one[0] for one in pieces}) > 12  # spread over the text, not at its beginning


def test_drawn_windows_depend_on_the_seed_and_are_spread_evenly():
    assert drawn(TEXTS, bare_tokenizer(), seed=1) == drawn(TEXTS, bare_tokenizer(), seed=1)
    assert drawn(TEXTS, bare_tokenizer(), seed=1) != drawn(TEXTS, bare_tokenizer(), seed=2)
    first = [one[0] - IDS[0] for one in drawn(TEXTS, bare_tokenizer(), num_windows=10)]
    assert first[:-1] == sorted(first[:-1])
    assert first[0] < 10
    assert first[-2] > 35


def test_a_text_without_spaces_is_drawn_from_too():
    tokenizer = bare_tokenizer()
    long_text = "w1" * 5 + " w2" * 40
    assert all(len(one) == 16 for one in drawn([long_text], tokenizer, num_windows=50))


def test_texts_shorter_than_a_window_are_no_calibration():
    assert len(drawn([" ".join(WORDS[:16])], bare_tokenizer(), num_windows=1)) == 1
    with pytest.raises(InputError, match="`calibration` must hold at least 16 tokens, those of a window, got 7"):
        drawn([" ".join(WORDS[:7])], bare_tokenizer())
    tokenizer = bare_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace(Regex("w2.*"), "")
    with pytest.raises(InputError, match="`calibration` must hold at least 16 tokens, those of a window, got 0"):
        drawn(["w2 " * 2000, "w2 w3"], tokenizer)
