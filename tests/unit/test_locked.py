"""Which packages a lock names, in every way in which uv writes one."""

from __future__ import annotations

import pytest

from serving.locked import Package, packages

A, B = f"sha256:{'a' * 64}", f"sha256:{'b' * 64}"


@pytest.mark.parametrize(
    ("lock", "found"),
    [
        ("", ()),
        (f"numpy==2.3.5 \\\n    --hash={A} \\\n    --hash={B}\n", (Package("numpy", "2.3.5", (A, B)),)),
        (f"numpy==2.3.5 --hash={A}\nscipy==1.0\n", (Package("numpy", "2.3.5", (A,)), Package("scipy", "1.0"))),
        ("Typing_Extensions==4.1\n", (Package("typing-extensions", "4.1"),)),
        ("uvicorn[standard]==0.38\n", (Package("uvicorn", "0.38"),)),
        (f"pywin32==3 ; sys_platform == 'win32' \\\n    --hash={A}\n", (Package("pywin32", "3", (A,)),)),
        ("# made by hand\n--extra-index-url https://pypi.example/simple\nsix==1.17\n", (Package("six", "1.17"),)),
        (
            f"ours @ https://pypi.example/ours-1.0.tar.gz#egg=ours \\\n    --hash={A}\n",
            (Package("ours", "", (A,), "https://pypi.example/ours-1.0.tar.gz#egg=ours"),),
        ),
        (
            f"./wheels/six-1.17.0-py2.py3-none-any.whl \\\n    --hash={A}\n",
            (Package("six", "1.17.0", (A,), "./wheels/six-1.17.0-py2.py3-none-any.whl"),),
        ),
        ("./code\n-e ./more\n", (Package("./code", url="./code"), Package("./more", url="./more"))),
    ],
    ids=["nothing", "hashes", "one line", "name", "extra", "marker", "options", "address", "wheel", "folders"],
)
def test_every_package_of_a_lock_is_named(lock: str, found: tuple[Package, ...]) -> None:
    assert packages(lock) == found
