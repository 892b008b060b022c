"""The README tells the truth: its diagram is the table's, its example uses what exists."""

import ast
import re
from pathlib import Path

import extraction_kit as xk
from extraction_kit.catalog.schema import reference
from extraction_kit.lifecycle import diagram

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_states_diagram_is_generated_from_the_table():
    block = re.search(r"```mermaid\n(.*?)\n```", README, re.DOTALL)
    assert block.group(1) == diagram()


def test_the_schema_is_generated_from_the_tables():
    block = re.search(
        r"<summary>Every table.*?</summary>\n\n(.*?)\n\n</details>", README, re.DOTALL
    )
    assert block.group(1) == reference(), (
        "python -m extraction_kit.catalog.schema README.md"
    )


def test_every_name_in_the_examples_exists():
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert blocks
    owners = {"xk": xk, "ws": xk.Workspace, "run": xk.Run}
    for block in blocks:
        tree = compile(
            block, "README", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        )
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert hasattr(owners[node.value.id], node.attr), ast.unparse(node)


def test_every_link_to_a_file_leads_somewhere():
    for target in re.findall(r"\]\(([^)]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target


def test_every_command_is_one_that_exists():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"`make ([a-z-]+)", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
