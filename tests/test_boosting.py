"""Boosted phrases have the scores and give the tokens of NeMo 2.7.3."""

from __future__ import annotations

import json
import random

import pytest
import torch
from support import CLIP, CLIP_WORDS, ROOT, token_frames

from nemotron_npu.audio import read_audio
from nemotron_npu.boosting import SCORE, BoostingTree, Phrase, read_phrases, spell
from nemotron_npu.errors import SetupError

CPU = torch.device("cpu")
DEMO = ROOT / "demo" / "demo.nemo"


def nemos_tree(phrases: list[tuple[list[int], float]], size: int):
    from nemo.collections.asr.parts.context_biasing.boosting_graph_batched import GPUBoostingTreeModel
    from nemo.collections.asr.parts.context_biasing.context_graph_universal import ContextGraph

    graph = ContextGraph(context_score=1.0, depth_scaling=2.0)
    graph.build([tokens for tokens, _ in phrases], scores=[score for _, score in phrases])
    return GPUBoostingTreeModel.from_context_graph(graph, size, use_triton=False, uniform_weights=False)


@pytest.mark.parametrize("seed", range(8))
def test_boosting_tree_scores_equal_nemos_in_every_state(seed):
    """Every state scores every token as NeMo's tree does, for phrases that begin, contain and end in each other."""
    rng, size, alpha = random.Random(seed), 12, 0.75
    phrases = [(rng.choices(range(4), k=rng.randrange(1, 6)), rng.choice([0.5, 1.0, 1.7])) for _ in range(12)]
    ours, theirs = BoostingTree(phrases, size, alpha, CPU), nemos_tree(phrases, size)
    node, state = ours.root, theirs.get_init_states(batch_size=1, bos=True)
    visited = set()
    for _ in range(400):
        scores, following = theirs.advance(state)
        assert torch.equal(ours.scores(node), scores[0] * alpha)
        token = rng.choice([0, 1, 2, 3, 3, rng.randrange(size)])
        node, state = ours.advance(node, token), following[:, token]
        visited.add(node)
    assert len(visited) > 10


def test_boosting_tree_takes_back_the_score_of_a_broken_phrase():
    """An unfinished phrase loses the score that it was given, and a complete one keeps it."""
    tree = BoostingTree([([1, 2, 3], SCORE)], 5, 1.0, CPU)
    node, given = tree.root, 0.0
    for token in (1, 2):
        given += float(tree.scores(node)[token])
        node = tree.advance(node, token)
    assert float(tree.scores(node)[4]) == pytest.approx(-given) and given > 3
    node = tree.advance(node, 3)
    assert float(tree.scores(node)[4]) == 0 and tree.advance(node, 4) is tree.root


@pytest.fixture(scope="module")
def clip():
    return read_audio(str(CLIP))


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("checkpoint", ["demo", "tiny"])
def test_boosted_tokens_of_both_engines_are_equal_parity(checkpoint, alpha, tiny, clip, engines):
    """Both engines choose the same tokens and frames with boosted phrases, and the same as before without them."""
    native, nemo = engines(DEMO if checkpoint == "demo" else tiny)
    if checkpoint == "demo":
        phrases = [Phrase("seven nine"), Phrase("one seven", 1.5), Phrase("zero five zero"), Phrase("two", 0.3)]
    else:
        rng, pieces = random.Random(0), native.speller.pieces
        words = ["".join(rng.sample([p for p in pieces if p.isalpha()], 3)) for _ in range(30)]
        phrases = [Phrase(" ".join(rng.sample(words, 2)), rng.choice([1.0, 2.0])) for _ in range(30)]
    waveforms = [clip, clip[:50000], clip[30000:]]
    plain = [token_frames(t) for t in native.transcribe(waveforms)]
    assert native.boost(phrases, alpha) == nemo.boost(phrases, alpha) == []
    try:
        ours = native.transcribe(waveforms, slots=3)
        assert [token_frames(t) for t in ours] == [token_frames(t) for t in nemo.transcribe(waveforms)]
        if alpha == 5:
            assert [token_frames(t) for t in ours] != plain
    finally:
        native.boost([])
        nemo.boost([])
    assert [token_frames(t) for t in native.transcribe(waveforms)] == plain


def test_boosting_tree_of_nemos_own_config_is_equal_parity(clip, engines, tmp_path):
    """NeMo's own ``decoding.greedy.boosting_tree`` gives the same tokens for one phrase file."""
    native, nemo = engines(DEMO)
    file = tmp_path / "phrases.txt"
    file.write_text("seven nine\none seven\nzero five zero\n")
    decoding = nemo.model.cfg.decoding.copy()
    decoding.greedy = {
        "max_symbols": 10,
        "boosting_tree": {"key_phrases_file": str(file), "context_score": 1.0, "depth_scaling": 2.0},
        "boosting_tree_alpha": 4.0,
    }
    nemo.model.change_decoding_strategy(decoding, verbose=False)
    theirs = nemo.transcribe([clip])[0]
    native.boost(read_phrases(file), 4.0)
    ours = native.transcribe([clip])[0]
    native.boost([])
    nemo.boost([])
    assert token_frames(ours) == token_frames(theirs) != token_frames(native.transcribe([clip])[0])


def test_boosted_phrase_wins_where_it_was_a_close_second(engines, clip):
    """A boosted phrase replaces a likelier word, and its tokens keep the model's own probabilities."""
    native, _ = engines(DEMO)
    native.boost([Phrase("one seven nine", 4.0)])
    boosted = native.transcribe([clip])[0]
    native.boost([])
    assert "one seven nine" in boosted.text and "one five nine" in CLIP_WORDS
    changed = [token for token in boosted.tokens if token.piece == "▁seven"]
    assert changed and all(0 < token.probability < 0.5 for token in changed), "the model's own probability of the token"


def test_boosted_streams_and_batches_equal_single_files(engines, clip):
    """Streams and batches with boosted phrases give the tokens of each recording alone."""
    native, _ = engines(DEMO)
    sources = [clip, clip[:70000], clip[10000:], clip]
    native.boost([Phrase("one seven nine"), Phrase("zero five")], 4.0)
    alone = [token_frames(native.transcribe([source])[0]) for source in sources]
    assert [token_frames(t) for t in native.transcribe(sources, slots=2)] == alone
    with native.stream() as stream:
        for first in range(0, len(clip), 2500):
            stream.feed(clip[first : first + 2500])
            native.boost([Phrase("zero")])  # for the next stream: this one keeps the phrases that it began with
    assert token_frames(stream.finish()) == alone[0]
    native.boost([])
    assert native.transcribe([clip])[0].text == CLIP_WORDS


# ---------------------------------------------------------------- the file


def test_phrase_file_lines_may_have_scores(tmp_path):
    """A phrase file may give scores, blank lines, and a phrase twice."""
    file = tmp_path / "words.txt"
    file.write_text("\ufeffAscend NPU\n\n  kunpeng \t2.5\r\nkunpeng\t3\nopen  euler\t\n", encoding="utf-8")
    assert read_phrases(file) == [Phrase("Ascend NPU", 1.0, 1), Phrase("kunpeng", 3.0, 4), Phrase("open euler", 1.0, 5)]


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"one\ntwo\tmuch\n", "line 2: 'much' is not a score"),
        (b"one\t-1\n", "line 1: '-1' is not a score"),
        (b"one\t0\n", "line 1: '0' is not a score"),
        (b"one\tinf\n", "line 1: 'inf' is not a score"),
        (b"one\t1\t2\n", "line 1: '1\\t2' is not a score"),
        (b"\n \n", "has no phrases"),
        (b"\xff\xfe\x00", "is not UTF-8 text"),
        (None, "No such file"),
    ],
)
def test_invalid_phrase_file_is_an_error_line(tmp_path, cli, content, reason):
    """An invalid phrase file is one error line that names the line and the problem."""
    file = tmp_path / "words.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SetupError):
        read_phrases(file)
    code, out, err = cli(CLIP, "--device", "cpu", "--boost_words", file)
    assert (code, out) == (2, "") and reason in err and len(err.splitlines()) == 1


def test_phrase_that_the_vocabulary_cannot_spell_is_skipped(engines):
    """Both engines skip and return the phrases that the vocabulary cannot spell."""
    native, nemo = engines(DEMO)
    phrases = [Phrase("Hello"), Phrase("five"), Phrase("ünf")]
    spelled, unknown = spell(phrases, native.tokenizer.encode, native.tokenizer.unk_id())
    assert (len(spelled), unknown) == (1, [phrases[0], phrases[2]])
    assert nemo.boost(phrases) == unknown
    nemo.boost([])


def test_boost_words_option_boosts_and_reports_skipped_phrases(cli, tmp_path):
    """--boost_words boosts files and streams in both engines and reports each phrase that it skips."""
    file = tmp_path / "words.txt"
    file.write_text("Hello\none seven nine\t4\n")
    code, out, err = cli(CLIP, "--device", "cpu", "--boost_words", file)
    assert code == 0 and "one seven nine" in out
    assert "line 1: this model cannot spell 'Hello' (skipped)" in err
    nemo = cli(CLIP, "--device", "cpu", "--boost_words", file, "--engine", "nemo")
    assert nemo[:2] == (code, out)
    code, streamed, _ = cli(CLIP, "--device", "cpu", "--boost_words", file, "--stream", "--output_format", "json")
    assert code == 0 and json.loads(streamed)["text"] == out.strip()
    assert cli(CLIP, "--device", "cpu", "--boost_words", file, "--boost_alpha", "0.01")[1].strip() == CLIP_WORDS
    file.write_text("HELLO\n")
    code, _, err = cli(CLIP, "--device", "cpu", "--boost_words", file, "--quiet")
    assert code == 2 and "check upper and lower case" in err and len(err.splitlines()) == 1
    assert cli(CLIP, "--boost_alpha", "2")[0] == cli(CLIP, "--boost_words", file, "--boost_alpha", "-1")[0] == 2


def test_resume_with_other_phrases_is_refused(cli, tmp_path):
    """--resume refuses results of other phrases or another alpha, and accepts a renamed phrase file."""
    file, other = tmp_path / "words.txt", tmp_path / "renamed.txt"
    file.write_text("one seven nine\t4\n")
    options = [CLIP, "--device", "cpu", "--output_dir", tmp_path / "out", "--output_format", "txt", "--resume"]
    assert cli(*options, "--boost_words", file)[0] == 0
    document = json.loads((tmp_path / "out" / "results.jsonl").read_text())
    assert document["boost_words"].startswith("1 phrase, alpha 1, sha256 ")
    code, _, err = cli(*options)
    assert code == 2 and "boost_words 1 phrase, alpha 1, sha256 " in err and "this run has none" in err
    assert cli(*options, "--boost_words", file, "--boost_alpha", "2")[0] == 2
    file.rename(other)
    assert "0 done, 1 done before" in cli(*options, "--boost_words", other)[2], "the name does not matter"
    other.write_text("one seven nine\t3\n")
    assert cli(*options, "--boost_words", other)[0] == 2
