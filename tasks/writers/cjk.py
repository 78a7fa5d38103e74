"""Rows in Chinese and Japanese: sentences made from a small fixed vocabulary, with facts among them.

A fact, and what is asked about it::

    青铜灯塔的编号是48213。      青铜灯塔的编号是什么？
    青銅の灯台の番号は48213です。  青銅の灯台の番号は何ですか。

The words of things that facts are about stand in no other sentence.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from tasks.documents import TextPool, pick
from tasks.writers.rows import Row, RowDraft, RowMaker

SENTENCES_OF_A_PARAGRAPH = 6


@dataclass(frozen=True, slots=True)
class Language:
    """Words and sentence patterns of one language."""

    filler: str
    """Pattern of a sentence that says nothing, with a field for each of ``parts``."""
    parts: Mapping[str, tuple[str, ...]]
    materials: tuple[str, ...]
    things: tuple[str, ...]
    attributes: tuple[str, ...]
    values: tuple[str, ...]
    """Words that may be values, besides numbers."""
    thing: str
    """How a material and a thing make a name."""
    fact: str
    question: str
    decision: str
    """Pattern of a sentence that a summary repeats."""


CHINESE = Language(
    filler="{time}，{place}的{person}{manner}{action}{object}。",
    parts=MappingProxyType(
        {
            "time": ("清晨", "中午", "傍晚", "上周", "去年", "春天", "雨后", "周末"),
            "place": ("城南", "海边", "山脚", "河岸", "车站", "学校", "集市", "图书馆"),
            "person": ("老师", "医生", "渔夫", "司机", "画家", "学生", "厨师", "邮递员"),
            "manner": ("慢慢地", "认真地", "悄悄地", "高兴地", "匆忙地", "仔细地"),
            "action": ("整理", "寻找", "观察", "修理", "搬运", "记录", "讨论", "等待"),
            "object": ("旧书", "木箱", "种子", "地图", "船票", "茶叶", "信件", "工具"),
        }
    ),
    materials=("青铜", "银色", "水晶", "大理石", "翡翠", "琥珀", "象牙", "珊瑚", "紫檀", "玄武"),
    things=("灯塔", "钟楼", "城门", "王冠", "宝剑", "石碑", "风铃", "罗盘", "雕像", "花瓶"),
    attributes=("编号", "主人", "颜色", "代号", "口令", "产地"),
    values=("朱砂", "墨竹", "丹桂", "白鹭", "孔雀", "芙蓉", "云杉", "麒麟", "霜叶", "晨曦"),
    thing="{material}{thing}",
    fact="{name}的{attribute}是{value}。",
    question="{name}的{attribute}是什么？",
    decision="会议决定由{person}负责修建{name}。",
)

JAPANESE = Language(
    filler="{time}、{place}の{person}は{manner}{object}を{action}。",
    parts=MappingProxyType(
        {
            "time": ("朝", "昼過ぎ", "夕方", "先週", "昨年", "春", "雨の後", "週末"),
            "place": ("駅前", "海辺", "山のふもと", "川岸", "市場", "学校", "港", "図書館"),
            "person": ("先生", "医者", "漁師", "運転手", "画家", "学生", "料理人", "配達員"),
            "manner": ("ゆっくりと", "丁寧に", "静かに", "楽しそうに", "急いで", "慎重に"),
            "object": ("古い本", "木箱", "種", "地図", "切符", "茶葉", "手紙", "道具"),
            "action": ("整理した", "探した", "観察した", "修理した", "運んだ", "記録した", "待った", "眺めた"),
        }
    ),
    materials=("青銅", "銀色", "水晶", "大理石", "翡翠", "琥珀", "象牙", "珊瑚", "紫檀", "漆"),
    things=("灯台", "鐘楼", "城門", "王冠", "宝剣", "石碑", "風鈴", "羅針盤", "彫像", "花瓶"),
    attributes=("番号", "所有者", "色", "暗号名", "合言葉", "産地"),
    values=("朱砂", "若竹", "桔梗", "白鷺", "孔雀", "芙蓉", "杉", "麒麟", "紅葉", "夜明け"),
    thing="{material}の{thing}",
    fact="{name}の{attribute}は{value}です。",
    question="{name}の{attribute}は何ですか。",
    decision="当社は{name}の建設を{person}に任せることを決定した。",
)

NEWS_CLASSES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "体育": ("球队", "比赛", "教练", "冠军"),
        "经济": ("股票", "市价", "银行", "贸易"),
        "科技": ("卫星", "芯片", "软件", "实验"),
        "教育": ("课堂", "考试", "校长", "教材"),
        "交通": ("地铁", "公路", "航班", "桥梁"),
        "农业": ("稻田", "果园", "牧场", "化肥"),
    }
)
"""Words of the news in each class, in LSHT's manner."""


def facts(language: Language, paragraph: str = "{text}\n") -> RowMaker:
    """Sentences with facts among them; one is asked. ``paragraph`` may number them: fields ``number``, ``text``."""

    def make(rng: np.random.Generator, pool: TextPool) -> RowDraft:
        lines = sentences(rng, language, pool)
        names = draw_names(rng, language, 2 + min(14, pool.target_tokens // 128))
        told = [_fact(rng, language, name, pick(rng, language.attributes)) for name in names]
        places, asked = np.sort(rng.random(len(told))), told[int(rng.integers(len(told)))]

        def row(size: int) -> Row:
            shown = _interleaved(lines[:size], [fact for fact, *_ in told], places)
            return Row(as_paragraphs(shown, paragraph), asked[1], (asked[2],))

        return row

    return make


def summary(language: Language, speakers: Sequence[str] = ()) -> RowMaker:
    """Sentences with three decisions among them; the answer repeats the decisions. ``speakers`` say the sentences."""

    def make(rng: np.random.Generator, pool: TextPool) -> RowDraft:
        lines = sentences(rng, language, pool)
        decisions = [
            language.decision.format(name=name, person=pick(rng, language.parts["person"]))
            for name in draw_names(rng, language, 3)
        ]
        places = np.sort(rng.random(len(decisions)))
        voices = rng.integers(max(1, len(speakers)), size=len(lines) + len(decisions))

        def row(size: int) -> Row:
            shown = _interleaved(lines[:size], decisions, places)
            said = [f"{speakers[i]}：{line}" for line, i in zip(shown, voices, strict=False)] if speakers else shown
            return Row("".join(f"{line}\n" for line in said), "", ("".join(decisions),))

        return row

    return make


def retrieval(language: Language, paragraph: str, answer: str) -> RowMaker:
    """Numbered paragraphs, one fact in each; the input is a fact and the answer its paragraph's number."""

    def make(rng: np.random.Generator, pool: TextPool) -> RowDraft:
        lines = sentences(rng, language, pool)
        subjects = [(name, attribute) for name in all_names(language) for attribute in language.attributes]
        told = [_fact(rng, language, *subjects[i])[0] for i in rng.permutation(len(subjects))]
        step, fraction = SENTENCES_OF_A_PARAGRAPH - 1, rng.random()

        def row(size: int) -> Row:
            num_paragraphs = min(max(1, size), len(told), len(lines) // step)
            paragraphs = [[told[i], *lines[i * step : (i + 1) * step]] for i in range(num_paragraphs)]
            text = "".join(
                paragraph.format(number=number, text="".join(shown)) for number, shown in enumerate(paragraphs, 1)
            )
            asked = int(fraction * num_paragraphs)
            return Row(text, told[asked], (answer.format(number=asked + 1),))

        return row

    return make


def news_classes(rng: np.random.Generator, pool: TextPool) -> RowDraft:
    """News with their classes as examples, in LSHT's form; the last is asked."""
    names = tuple(NEWS_CLASSES)
    shots = []
    for _ in range(2 + pool.target_tokens // 16):
        name = pick(rng, names)
        words = [NEWS_CLASSES[name][i] for i in rng.permutation(4)[:2]]
        shots.append((f"{_filler(rng, CHINESE)}{words[0]}和{words[1]}成为话题。", name))
    (asked, gold), *shown = shots
    texts = [f"新闻内容：{text}\n类别：{name}\n" for text, name in shown]
    return lambda size: Row("".join(texts[:size]), f"新闻内容：{asked}\n类别：", (gold,), names)


def sentences(rng: np.random.Generator, language: Language, pool: TextPool) -> list[str]:
    """Sentences that say nothing, more than enough for the pool's length."""
    return [_filler(rng, language) for _ in range(4 + pool.target_tokens // 2)]


def all_names(language: Language) -> list[str]:
    """Every name of a thing that facts may be about."""
    pairs = itertools.product(language.materials, language.things)
    return [language.thing.format(material=material, thing=thing) for material, thing in pairs]


def draw_names(rng: np.random.Generator, language: Language, number: int) -> list[str]:
    """Different names of things."""
    names = all_names(language)
    return [names[i] for i in rng.permutation(len(names))[:number]]


def as_paragraphs(lines: Sequence[str], paragraph: str) -> str:
    """Sentences in paragraphs of six."""
    starts = range(0, len(lines), SENTENCES_OF_A_PARAGRAPH)
    texts = ("".join(lines[start : start + SENTENCES_OF_A_PARAGRAPH]) for start in starts)
    return "".join(paragraph.format(number=number, text=text) for number, text in enumerate(texts, 1))


def _filler(rng: np.random.Generator, language: Language) -> str:
    return language.filler.format(**{part: pick(rng, words) for part, words in language.parts.items()})


def _fact(rng: np.random.Generator, language: Language, name: str, attribute: str) -> tuple[str, str, str]:
    """A fact, its question, its answer."""
    value = str(rng.integers(1000, 1_000_000)) if rng.random() < 0.5 else pick(rng, language.values)
    fact = language.fact.format(name=name, attribute=attribute, value=value)
    return fact, language.question.format(name=name, attribute=attribute), value


def _interleaved(lines: Sequence[str], facts: Sequence[str], places: Sequence[float] | np.ndarray) -> list[str]:
    shown: list[str] = []
    start = 0
    for place, fact in zip(places, facts, strict=True):
        stop = int(place * (len(lines) + 1))
        shown += [*lines[start:stop], fact]
        start = stop
    return [*shown, *lines[start:]]
