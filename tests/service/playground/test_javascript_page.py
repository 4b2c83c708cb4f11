"""The page on the JavaScript client has the client, and its programs run."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.service.conftest import Server

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs/javascript.md").read_text("utf-8")
CLIENT = ROOT / "service/playground/static/client.js"
PROGRAMS = re.findall(r"```js\n(.*?)```", PAGE, re.DOTALL)
NODE = shutil.which("node")


def test_the_page_prints_the_client() -> None:
    (printed,) = re.findall(r"```javascript\n(.*?)```", PAGE, re.DOTALL)
    assert printed == CLIENT.read_text("utf-8")


@pytest.mark.skipif(NODE is None, reason="there is no Node on the path")
def test_the_programs_of_the_page_run(tmp_path: Path) -> None:
    assert len(PROGRAMS) == 4
    shutil.copy(CLIENT, tmp_path)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    printed = []
    with Server(tmp_path / "data").listening() as running:
        for number, program in enumerate(PROGRAMS):
            script = tmp_path / f"{number}.js"
            script.write_text(program.replace("http://localhost:8000", running.url))
            done = subprocess.run(
                [str(NODE), script], capture_output=True, text=True, timeout=60, check=False
            )
            assert (done.returncode, done.stderr) == (0, "")
            printed.append(done.stdout.splitlines())
    asked, many, streamed, followed = printed
    assert [line.split()[0] for line in asked] == ["urgent", "team"]
    assert {re.sub(r" [\d.]+$", "", line) for line in many} == {"It can wait.", "Now!", "Thank you."}
    events = [line.split()[0] for line in streamed]
    assert events == ["step"] * (len(events) - 3) + ["adapter", "prediction", "done"]
    assert re.fullmatch(r"succeeded (\d+) of \1", followed[-2])
    assert followed[-1] == "3"


@pytest.mark.skipif(NODE is None, reason="there is no Node on the path")
def test_errors_name_the_field_and_busy_servers_are_asked_again(tmp_path: Path) -> None:
    shutil.copy(CLIENT, tmp_path)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "a.js").write_text(
        """import { Client } from "./client.js";
        let calls = 0;
        const busy = () => new Response('{"error": {"message": "busy"}}', { status: 429, headers: { "retry-after": "0" } });
        const fetch = async () => ((calls += 1) < 3 ? busy() : new Response('{"data": [{"id": "m"}]}'));
        console.log((await new Client("http://x/", { fetch }).models()).data[0].id, calls);
        for (const [status, retries] of [[429, 1], [500, 3], [422, 3]]) {
            calls = 0;
            const text = JSON.stringify({ error: { message: "no", code: "c", param: "inputs[1]" } });
            const refuse = async () => ((calls += 1), new Response(text, { status, headers: { "retry-after": "0" } }));
            try { await new Client("http://x", { fetch: refuse, retries }).predict({}); }
            catch (error) { console.log(error.name, error.message, error.status, error.code, error.param, calls); }
        }
        """
    )  # fmt: skip
    done = subprocess.run(
        [str(NODE), tmp_path / "a.js"], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.splitlines() == [
        "m 3",
        "ServerError no 429 c inputs[1] 2",
        "ServerError no 500 c inputs[1] 1",
        "ServerError no 422 c inputs[1] 1",
    ]
