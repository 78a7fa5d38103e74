"""No secret of an address is shown: by the function, and by what the program says of a mistake."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest

from orchestrator.cli import main
from orchestrator.config import load_config
from orchestrator.credentials import without_credentials
from orchestrator.errors import ConfigError
from orchestrator.tracked import settings_file


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://me:SECRET@there:5000", "http://***@there:5000"),
        ("https://SECRET@there/a", "https://***@there/a"),
        ("s3://KEY:SEC/RET@bucket/run?region=a", "s3://***@bucket/run?region=a"),
        ("postgresql://me:SEC@RET@there/db", "postgresql://***@there/db"),
        ("postgresql://there/db?sslmode=verify-full&sslpassword=SECRET&x=1", "postgresql://there/db?sslmode=verify-full&sslpassword=***&x=1"),
        ("postgresql://there/db?user=me&password=SECRET", "postgresql://there/db?user=me&password=***"),
        ("mssql://there/db?odbc_connect=DRIVER%3Dx%3BPWD%3DSECRET", "mssql://there/db?odbc_connect=***"),
        ("https://there/a?X-Amz-Signature=SECRET", "https://there/a?X-Amz-Signature=***"),
        ("http://127.0.0.1:5000/#/runs", "http://127.0.0.1:5000/#/runs"),
        ("https://there/owner/name@commit", "https://there/owner/name@commit"),
        ("s3://bucket/run?region=eu-west-1&scheme=https", "s3://bucket/run?region=eu-west-1&scheme=https"),
        ("see http://there:5000 or ask me@there", "see http://there:5000 or ask me@there"),
    ],
)  # fmt: skip
def test_what_is_secret_in_an_address_is_not_shown_and_all_else_is(text: str, shown: str) -> None:
    assert without_credentials(text) == shown
    assert without_credentials(shown) == shown
    assert json.loads(without_credentials(json.dumps({"a": text, "b": [text, "c@d"]}))) == {
        "a": shown,
        "b": [shown, "c@d"],
    }


@pytest.mark.parametrize(
    "words",
    [
        ["tracking.ury=http://u:SECRET@x"],
        ["tracking.uri.x=http://u:SECRET@x"],
        ["tracking={uri: 'http://u:SEC/RET@x', enabled: 3}"],
        ["tracking.uri=[http://u:SECRET@x]"],
        ["model.path_or_id=http://u:SECRET@x"],
        ["--uri=http://u:SECRET@x"],
        ["--run", "s9://u:SECRET@x"],
    ],
    ids=lambda words: words[0],
)
def test_a_mistake_is_told_without_the_password_beside_it(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with suppress(SystemExit):  # what cannot even be understood
        assert main(["evolve", "small", *words]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "***" in told
    assert "SEC" not in told
    assert "RET" not in told


def test_whoever_loads_settings_sees_no_password_in_what_is_raised():
    with pytest.raises(ConfigError, match=r"override 'tracking.ury=http://\*\*\*@x'") as caught:
        load_config("small", ["tracking.ury=http://u:SECRET@x"])
    assert "SECRET" not in str(caught.value)


def test_the_settings_that_a_report_and_mlflow_show_hold_no_secret():
    shown = settings_file({"tracking": {"uri": "postgresql://u:SEC/RET@there/db?sslpassword=SECRET"}})
    assert shown == "tracking:\n  uri: postgresql://***@there/db?sslpassword=***\n"
