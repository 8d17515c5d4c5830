"""Tokens that are not text: ends of utterances and languages become events and fields of segments."""

import json
from types import SimpleNamespace

import hostile_checkpoints
import pytest
import yaml
from support import CLIP

from nemotron_npu.formats import to_document, to_lines
from nemotron_npu.spelling import Speller
from nemotron_npu.tags import Tag, find_tags

PIECES = ["<unk>", "▁", "▁yes", "▁no", "s", ".", "<EOU>", "<EOB>", "<en-US>", "<zh-CN>", "▁la"]


def spoken(*pieces):
    """The transcript of these tokens, one in each frame."""
    speller = Speller(PIECES, lambda ids: "".join(PIECES[id] for id in ids).replace("▁", " ").strip(), 0.08)
    tokens = [
        SimpleNamespace(id=PIECES.index(p), frame=i, probability=1.0, confidence=1.0) for i, p in enumerate(pieces)
    ]
    return speller.transcript(tokens, 60.0)


def test_tags_are_found_by_their_spelling():
    tags = find_tags([*PIECES, "<blank>", "<s>", "<EOU", "▁<de-DE>"])
    assert list(tags) == [6, 7, 8, 9, 14]
    assert tags[6] == Tag("end_of_utterance") and tags[9] == Tag("language", "zh-CN")


def test_end_of_utterance_ends_a_segment_and_is_no_text():
    transcript = spoken("▁yes", "s", "<EOU>", "▁no", "<EOB>", "▁yes")
    assert transcript.text == "yess no yes" and to_lines(transcript) == "yess\nno\nyes\n"
    first, second, third = to_document(transcript)["segments"]
    assert first["end_of_utterance"] is True and "end_of_backchannel" not in first
    assert second["end_of_backchannel"] is True and "end_of_utterance" not in second
    assert not {"end_of_utterance", "end_of_backchannel", "language"} & set(third)
    assert len(transcript.tokens) == 6, "the tokens are what the model emitted"
    assert to_document(transcript)["events"] == [
        {"event": "end_of_utterance", "frame": 2, "time": 0.16},
        {"event": "end_of_backchannel", "frame": 4, "time": 0.32},
    ]


def test_language_is_that_of_all_words_since_the_last_tag():
    transcript = spoken("▁yes", "▁no", ".", "▁", "<en-US>", "▁la", "▁la", "<zh-CN>", "▁no")
    assert transcript.text.split() == [word.text for word in transcript.words] == ["yes", "no.", "la", "la", "no"]
    assert [word.language for word in transcript.words] == ["en-US", "en-US", "zh-CN", "zh-CN", None]
    assert [(segment.text, segment.language) for segment in transcript.segments] == [
        ("yes no.", "en-US"),
        ("la la", "zh-CN"),
        ("no", None),
    ]
    languages = [event.get("language") for event in to_document(transcript)["events"]]
    assert languages == ["en-US", "zh-CN"]


@pytest.fixture(scope="module")
def emits_ends(tmp_path_factory):
    """The bundled model, which says "three one four one five nine two six", with <EOU> for "four", <EOB> for "nine"."""
    ends = {33: "<EOU>", 30: "<EOB>"}

    def rename(pieces: list[bytes]) -> None:
        for id, name in ends.items():  # a message whose first field is the name, in a message
            body = b"\n" + bytes([len(name)]) + name.encode() + pieces[id][4 + pieces[id][3] :]
            pieces[id] = b"\n" + bytes([len(body)]) + body

    config = hostile_checkpoints.config()
    for id, name in ends.items():
        config["labels"][id] = config["joint"]["vocabulary"][id] = name
    changed = {
        hostile_checkpoints.TOKENIZER: hostile_checkpoints.other_tokenizer(rename)(),
        hostile_checkpoints.CONFIG: yaml.safe_dump(config).encode(),
    }
    path = tmp_path_factory.mktemp("ends") / "ends.nemo"
    path.write_bytes(hostile_checkpoints.packed(hostile_checkpoints.members() | changed))
    return path


def test_checkpoint_with_ends_splits_every_format(cli, emits_ends):
    options = ["--model_path", emits_ends, CLIP, "--device", "cpu", "--quiet", "--output_format"]
    code, out, _ = cli(*options, "json")
    document = json.loads(out)
    ends = [(s["text"], s.get("end_of_utterance"), s.get("end_of_backchannel")) for s in document["segments"]]
    assert code == 0 and document["text"] == "three one one five two six"
    assert ends == [(" three one", True, None), (" one five", None, True), (" two six", None, None)]
    assert [event["event"] for event in document["events"]] == ["end_of_utterance", "end_of_backchannel"]
    assert cli(*options, "srt")[1].splitlines()[2::4] == ["three one", "one five", "two six"]


def test_checkpoint_with_ends_ends_utterances_of_a_stream(cli, emits_ends):
    """<EOU> ends one without a pause, <EOB> does not."""
    options = ["--model_path", emits_ends, "--device", "cpu", "--quiet", "--stream", CLIP, "--endpoint_ms", 0]
    assert cli(*options)[1] == "three one\none five two six\n"
    events = map(json.loads, cli(*options, "--output_format", "events")[1].splitlines())
    assert [event.get("end_of_utterance") for event in events if event["type"] == "segment"] == [True, None]


@pytest.mark.parametrize("pieces", [("<EOU>",), ("▁", "<EOU>"), ("<en-US>", "<EOU>")])
def test_tag_without_words_is_an_event_only(pieces):
    transcript = spoken(*pieces)
    assert (transcript.text.strip(), transcript.words, transcript.segments) == ("", (), ())
    assert transcript.events


def test_document_without_tags_has_no_events():
    assert "events" not in to_document(spoken("▁yes", "▁no"))
