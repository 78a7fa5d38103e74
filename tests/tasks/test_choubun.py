"""ChouBun's metrics are LongBench's over the words that MeCab cuts."""

import pytest

from tasks import choubun
from tasks.lm_eval_adapter import library_config
from tasks.suites import SUITES


def score(task, completion, *answers):
    config = library_config(SUITES["choubun"], task)
    return config["process_results"]({"answers": list(answers)}, [completion])["score"]


def test_japanese_text_is_cut_into_words():
    assert choubun.words("初代の首相は伊藤博文です") == ["初代", "の", "首相", "は", "伊藤", "博文", "です"]


@pytest.mark.parametrize("task", ["wiki_qa", "edinet_qa", "corp_sec_qa"])
def test_answers_are_scored_by_the_f1_of_their_words(task):
    assert score(task, "伊藤博文", "伊藤博文") == 1.0
    assert score(task, "", "伊藤博文") == 0.0
    # Two of the four words said are among the two expected: precision 1/2, recall 1.
    assert score(task, "首相は伊藤博文", "伊藤博文") == pytest.approx(2 / 3)
    assert score(task, "伊藤博文", "板垣退助", "伊藤博文") == 1.0  # the best of all answers


def test_summaries_are_scored_by_the_longest_common_sequence_of_words():
    assert score("corp_sec_sum", "会社は議案を可決した", "会社は議案を可決した") == pytest.approx(1.0, abs=1e-6)
    shuffled = score("corp_sec_sum", "議案を可決した会社は", "会社は議案を可決した")
    assert 0.5 < shuffled < 1.0
    assert score("corp_sec_sum", "", "会社は議案を可決した") == 0.0


def test_the_published_limits():
    limits = {task: choubun.config(task)["generation_kwargs"]["max_gen_toks"] for task in ("wiki_qa", "corp_sec_sum")}
    assert limits == {"wiki_qa": 64, "corp_sec_sum": 128}
