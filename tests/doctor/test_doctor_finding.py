"""``doctor/finding.py``: what is left out of the report."""

import platform

from nemotron_npu.doctor.finding import anonymous, private


def test_paths_are_shown_from_home_on_or_by_their_last_part(monkeypatch):
    monkeypatch.setenv("HOME", "/home/marlowe")
    for text, shown in [
        ("/home/marlowe/Ascend/set_env.sh", "~/Ascend/set_env.sh"),
        ("/home/marlowe2/x.so: no", ".../x.so: no"),
        ("cannot open '/data/my own/lib x.so'", "cannot open '.../lib x.so'"),
        ("in /srv/acme/venv/lib/libc.so.6, line 3", "in .../libc.so.6, line 3"),
        ("source /usr/local/Ascend/cann/set_env.sh", "source /usr/local/Ascend/cann/set_env.sh"),
        ("https://www.hiascend.com/cann/download", "https://www.hiascend.com/cann/download"),
        ("a\x1b[31mb\0c", "a [31mb c"),
    ]:
        assert private(text) == shown


def test_names_and_addresses_in_error_texts_are_left_out(monkeypatch):
    monkeypatch.setenv("USER", "marlowe")
    monkeypatch.setattr(platform, "node", lambda: "node-17.acme")
    text = "marlowe@node-17.acme (10.0.3.17): torch 2.13.0, firmware 7.8.0.6.201, libc 2.36"
    assert anonymous(text) == "...@... (...): torch 2.13.0, firmware 7.8.0.6.201, libc 2.36"
