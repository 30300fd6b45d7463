"""The page's section on Python definitions: its command run on its own file."""

from __future__ import annotations

from pathlib import Path

import pages

PAGE = "core/docs/coming-from-dagster.md"


def test_the_command_says_of_the_pages_file_what_the_page_says(tmp_path: Path) -> None:
    (code,) = [block for block in pages.blocks(PAGE, "py") if block.startswith("# src/shop/definitions.py")]
    (command,) = [block.strip() for block in pages.blocks(PAGE, "sh") if "--code" in block]
    (said,) = [block.splitlines() for block in pages.blocks(PAGE, "text") if "shop/definitions.py" in block]
    (tmp_path / "src" / "shop").mkdir(parents=True)
    (tmp_path / "src" / "shop" / "definitions.py").write_text(code)
    (tmp_path / "dagster.yaml").write_text("concurrency: {pools: {default_limit: 1}}\n")
    with pages.shell(tmp_path) as shell:
        printed = [line for line in shell.run(command) if not line.startswith("dagster.yaml: ")]
    assert pages.plain(printed) == pages.plain(said)
