"""Character sets of subtitles: Unicode is known, others are guessed and said."""

import random

import pytest
from subtitle_rows import SRT, rows

from ivlite.media import charset, subtitles

TEXTS = {
    "fr": ("cp1252", "Bonjour à tous, ça va être une journée très agréable."),
    "de": ("cp1252", "Über die Brücke fährt ein großer Lastwagen. Schöne Grüße!"),
    "es": ("cp1252", "¿Qué pasó ayer por la mañana? El camión llegó tarde, ¡señor!"),
    "sv": ("cp1252", "Jag är på väg till sjön för att åka skridskor."),
    "pl": ("cp1250", "Czerwona ciężarówka jedzie przez miasto, a kierowca śpi. Zażółć gęślą jaźń."),
    "cs": ("cp1250", "Příliš žluťoučký kůň úpěl ďábelské ódy. Děkuji, hezké město."),
    "hu": ("cp1250", "Jó reggelt, hölgyeim és uraim! Köszönöm a segítséget, főnök úr."),
    "tr": ("cp1254", "Günaydın, bugün hava çok güzel ve güneşli. Şoför nerede?"),
    "lt": ("cp1257", "Šiandien labai gražus oras, sunkvežimis važiuoja per tiltą. Ačiū už pagalbą."),
    "ru": ("cp1251", "Привет, как дела? Красный грузовик едет по мосту. Ёлка стоит."),
    "uk": ("cp1251", "Привіт, як справи? Червона вантажівка їде мостом."),
    "ru-koi8": ("koi8-r", "Привет, как дела? Красный грузовик едет по мосту."),
    "ru-dos": ("cp866", "Привет, как дела? Красный грузовик едет по мосту."),
    "el": ("cp1253", "Καλημέρα, τι κάνεις; Το κόκκινο φορτηγό περνάει τη γέφυρα."),
    "he": ("cp1255", "שלום, מה שלומך? המשאית האדומה עוברת את הגשר."),
    "ar": ("cp1256", "مرحبا، كيف حالك؟ الشاحنة الحمراء تعبر الجسر."),
    "th": ("cp874", "สวัสดีครับ วันนี้อากาศดีมาก รถบรรทุกสีแดงข้ามสะพาน"),
    "zh": ("gb18030", "你好，今天天气很好。红色的卡车正在过桥。"),
    "zh-tw": ("big5", "你好，今天天氣很好。紅色的卡車正在過橋。"),
    "ja": ("shift_jis", "こんにちは、今日はいい天気ですね。赤いトラックが橋を渡っています。"),
    "ja-euc": ("euc_jp", "こんにちは、今日はいい天気ですね。赤いトラックが橋を渡っています。"),
    "ja-iso": ("iso2022_jp", "こんにちは、今日はいい天気ですね。"),
    "ko": ("euc_kr", "안녕하세요, 오늘 날씨가 참 좋네요. 빨간 트럭이 다리를 건너고 있습니다."),
}


@pytest.mark.parametrize("name", TEXTS)
def test_character_sets_are_guessed_and_said(write, name):
    codec, text = TEXTS[name]
    found = subtitles.read(write("talk.srt", SRT.format(text, "ok").encode(codec)))
    assert rows(found) == [(1.0, 2.5, text), (3.0, 4.0, "ok")]
    assert found.charset.endswith("(guessed)") and "a guess" in found.notes[0]


@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_unicode_is_known(write, codec, newline):
    text = SRT.format("Привет, red truck", "你好 🎉").replace("\n", newline)
    found = subtitles.read(write("talk.srt", text.encode(codec)))
    assert rows(found) == [(1.0, 2.5, "Привет, red truck"), (3.0, 4.0, "你好 🎉")]
    assert "guess" not in found.charset and not found.notes


def test_the_language_in_the_name_decides_what_bytes_leave_open(write):
    short = SRT.format("红色卡车", "ok").encode("gb18030")
    found = subtitles.read(write("talk.zh.srt", short))
    assert found.cues[0].text == "红色卡车" and found.language == "zh"


@pytest.mark.parametrize(
    "text", ["Müller", "It’s “fine”… ok", "£5 and 20°C", "façade", "¿qué?", "Ångström – déjà vu", "5€ to 10€"]
)
def test_a_few_western_characters_are_western(write, text):
    assert (
        subtitles.read(write("talk.srt", SRT.format(f"hello, {text}, and more", "ok").encode("cp1252"))).cues[0].text
        == f"hello, {text}, and more"
    )


def test_accents_far_into_a_file_count(write):
    lines = [
        f"{i}\n00:{i // 60:02}:{i % 60:02},000 --> 00:{i // 60:02}:{i % 60:02},900\nline {i}\n" for i in range(3000)
    ]
    lines.append("3001\n00:59:00,000 --> 00:59:01,000\nça va être très agréable, mon chéri\n")
    found = subtitles.read(write("talk.srt", "\n".join(lines).encode("cp1252")))
    assert found.cues[-1].text == "ça va être très agréable, mon chéri"


def test_a_few_damaged_bytes_leave_utf8(write):
    data = SRT.format("Привет, красный грузовик едет по мосту", "x\udc99y").encode("utf-8", "surrogateescape")
    found = subtitles.read(write("talk.srt", data))
    assert found.cues[0].text == "Привет, красный грузовик едет по мосту"
    assert found.charset == "utf-8 (with 1 damaged characters)" and found.counts["damaged"] == 1


def test_noise_reads_like_nothing():
    noise = bytes(random.Random(5).choices(range(128, 256), k=4000))
    good = charset.guess(TEXTS["ru"][1].encode("cp1251"))[1]
    assert charset.guess(noise)[1] < 0.6 * good
