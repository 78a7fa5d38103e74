from hypothesis import given
from hypothesis import strategies as st

from tasks.splits import split_rows

ids = st.lists(st.text(max_size=8), unique=True, max_size=60)


@given(ids)
def test_every_row_falls_into_one_split(names):
    split = split_rows("longbench", "trec", names, len(names))
    assert sorted((*split["train"], *split["heldout"])) == list(range(len(names)))


@given(ids, ids)
def test_a_row_keeps_its_split_and_the_order_whatever_else_comes_or_goes(names, others):
    more = [*[name for name in others if name not in names], *names]
    before = {s: [names[row] for row in rows] for s, rows in split_rows("ruler", "vt", names, len(names)).items()}
    after = {s: [more[row] for row in rows] for s, rows in split_rows("ruler", "vt", more, len(more)).items()}
    for split in ("train", "heldout"):
        assert [name for name in after[split] if name in names] == before[split]


def test_one_row_in_four_is_held_out_and_tasks_differ():
    names = [f"row {i}" for i in range(4000)]
    first, other = (split_rows("longbench", task, names, len(names)) for task in ("trec", "lsht"))
    assert 900 < len(first["heldout"]) < 1100
    assert first["heldout"] != other["heldout"]


def test_rows_whose_ids_repeat_are_told_apart_by_their_place():
    assert split_rows("infinitebench", "passkey", ["0"] * 40, 40) == split_rows("infinitebench", "passkey", None, 40)
