"""Guesses the character set of a text file: Unicode where its bytes are valid, else the set in which the text reads best."""

import codecs
import unicodedata

MARKS = (  # of 4 bytes before those of 2, which they begin with
    (codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
DAMAGED = 0.02  # of the characters: so many may be wrong in a text
NAMED = 0.15  # of a score: what a language in the file's name is worth
PUNCTUATION = frozenset("–—‘’“”„…«»‹›¿¡♪♫£€°№·©®™§、。，！？：；「」『』《》（）　・ー～\xa0\xad")

CYRILLIC = "оеаинтсрвлкмдпуяыьгзбчйхжшюцщэфъёіїєґјљњћђџўѓќ"
KANA = frozenset(chr(c) for c in range(0x3041, 0x3097))
CHINESE = frozenset(
    "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里用道行所然家种事成方多经么去法学如都"
    "同现当没动面起看定天分还进好小部其些主样理心她本前开但因只从想实日军者意无力它与长把机十民第公此已工使情明性知全三又关点正业外将两高间由"
    "问很最重并物手应战向头文体政美相见被利什二等产或新己制身果加西斯月话合回特代内信表化老给世位次度门任常先海通教儿原东声提立及比员解水名真"
)
TRADITIONAL = frozenset(
    "的一是不了在人有我他這個們中來上大為和國地到以說時要就出會可也你對生能而子那得於著下自之年過發後作里用道行所然家種事成方多經麼去法學如都"
    "同現當沒動面起看定天分還進好小部其些主樣理心她本前開但因只從想實日軍者意無力它與長把機十民第公此已工使情明性知全三又關點正業外將兩高間由"
    "問很最重並物手應戰向頭文體政美相見被利什二等產或新己制身果加西斯月話合回特代內信表化老給世位次度門任常先海通教兒原東聲提立及比員解水名真"
)
KOREAN = frozenset("이다는을가에의고도한하지기서로나사리아어은그자시라대인해를니면정일들보수것게있없안우여스전와만과부")

# Character sets of one byte per letter, and for each of their languages the letters beyond ASCII, the most frequent first.
SINGLE = {
    "cp1252": {
        "fr": "éèàêçâîôûùëïœüæÿ", "de": "üäöß", "es": "óáéíñúü", "pt": "ãçéáóêíõâúàô", "it": "èàùòéì", "nl": "éëïóöüè",
        "sv": "äåöé", "da": "øæåé", "no": "åøæé", "fi": "äöå", "is": "íðáóæöéúýþ", "ca": "àéóèíçòúüï",
    },
    "cp1250": {
        "pl": "ąęłóśżćńź", "cs": "íáěéýčžšřůúňťóď", "sk": "áíčéžšýúťľňôäóďĺŕ", "hu": "áéöőóüíúű", "ro": "ăîâşţ",
        "hr": "čšžćđ", "sl": "čšž",
    },
    "cp1254": {"tr": "ıüşçğöİâ"},
    "cp1257": {"lt": "ėąšųįžūęč", "lv": "āīēšūņļžčķģ", "et": "äõüöšž"},
    "cp1251": dict.fromkeys(("ru", "uk", "bg", "sr", "mk", "be"), CYRILLIC),
    "koi8-u": dict.fromkeys(("ru", "uk"), CYRILLIC),
    "cp866": {"ru": CYRILLIC},
    "iso8859-5": dict.fromkeys(("ru", "bg", "sr"), CYRILLIC),
    "cp1253": {"el": "αοιετσνηυρπκμλςίόωάέδγήχύώθφβξζψϊϋΐΰ"},
    "cp1255": {"he": "יוהלאמרתבשנעדקחכפםטגןזסצךףץ"},
    "cp1256": {"ar": "اليمونرتبةعدسفهكقأحجشصخإىضذزطثءئغآؤظ", "fa": "ایرندمهوتبسشکزگلفقخعحپجآغچطصضظثذژ"},
    "cp874": {"th": "านรกอเงมลยวดทสตะปบคหแจพชขใไโถผซฟณศษธภฉฐ็่้๊๋ัิีึืุูำ์"},
}  # fmt: skip
MULTIPLE = {"gb18030": ("zh",), "cp950": ("zh",), "cp932": ("ja",), "euc_jp": ("ja",), "cp949": ("ko",)}
FINAL = frozenset("ςםןךףץ")  # letters that end a word
NAMES = {"utf-8-sig": "utf-8", "cp950": "big5", "cp932": "shift_jis", "cp949": "euc-kr", "koi8-u": "koi8-r",
         "euc_jp": "euc-jp", "iso2022_jp": "iso-2022-jp"}  # fmt: skip


def marked(head):
    """The Unicode encoding that the first bytes of a file (some hundreds) say or show; "" if none."""
    for mark, name in MARKS:
        if head.startswith(mark):
            return name
    head = head[: len(head) // 4 * 4]
    if len(head) >= 8:  # without a mark: the zeros of ASCII characters
        even, odd = head[::2].count(0) / (len(head) / 2), head[1::2].count(0) / (len(head) / 2)
        if odd > 0.4 and even < 0.05:
            return "utf-16-le"
        if even > 0.4 and odd < 0.05:
            return "utf-16-be"
    return ""


def guess(sample, language=""):
    """(name of the codec, score from 0 to 1) of bytes that are not valid UTF-8: whole lines of a text.

    language: two letters, what the file's name says.
    """
    if b"\x1b$" in sample:
        return "iso2022_jp", 1.0
    best = ("cp1252", 0.0)
    for codec in (*SINGLE, *MULTIPLE):
        score = _score(sample, codec, language)
        if score > best[1]:
            best = codec, score
    return best


def shown(codec):
    """The usual name of a codec."""
    return NAMES.get(codec, codec)


def _score(sample, codec, language):
    text = sample.decode(codec, "replace")
    strange = [c for c in text if c > "\x7f"]
    wrong = text.count("�")
    if not strange or wrong > DAMAGED * len(strange) + 1:
        return 0.0
    known = SINGLE.get(codec)
    if known is None:
        score = sum(map(WEIGHTS[codec], strange)) / len(strange)
        named = language in MULTIPLE[codec]
    else:
        score, named = max((_spelled(text, letters), language == name) for name, letters in known.items())
        named = language in known
    return max(0.0, score - 2 * wrong / len(strange)) * (1 + NAMED * named)


def _spelled(text, letters):
    """How much the characters beyond ASCII read like a language with these letters: at most 1."""
    rank = {c: 1 - 0.6 * i / len(letters) for i, c in enumerate(letters)}
    latin = ord(letters[0]) < 0x250
    total = count = 0
    before = " "
    for c, after in zip(text, text[1:] + " ", strict=True):
        if c > "\x7f":
            count += 1
            total += _letter(c, before, after, rank, latin)
        before = c
    return total / max(1, count)


def _letter(c, before, after, rank, latin):
    low = c.lower()
    if low not in rank and c not in rank:
        if c in PUNCTUATION:
            return 0.0 if before.isalpha() and after.isalpha() and c not in "’‘–—" else 0.5
        return -0.2 if c.isalpha() and latin else -1.0
    if c != low and before.islower() and before.isalpha():
        return -1.0  # upper case after lower case
    if before.isdigit() or after.isdigit():
        return -0.5  # no letter: the sign of a currency, a degree
    foreign = (before.isascii() and before.isalpha()) or (after.isascii() and after.isalpha())
    if not latin and foreign:
        return -1.0
    if latin and before > "\x7f" and before.isalpha():
        return 0.1  # accents rarely follow each other
    if c in FINAL and after.isalpha():
        return -0.5
    return rank.get(low, rank.get(c, 0.0)) * (1.0 if c == low else 0.8)


def _chinese(codec, common, levels):
    first, last = levels

    def weight(c):
        if c in common:
            return 1.0
        if c in PUNCTUATION:
            return 0.8
        if not "一" <= c <= "\u9fff":
            return 0.4 if "！" <= c <= "～" else -0.5
        return 0.6 if first <= c.encode(codec, "replace")[0] <= last else 0.1

    return weight


def _japanese(c):
    if c in KANA:
        return 1.0
    if c in PUNCTUATION:
        return 0.8
    if "ァ" <= c <= "ヺ":
        return 0.7
    if "一" <= c <= "\u9fff":
        return 0.5 if 0x88 <= c.encode("cp932", "replace")[0] <= 0x97 else 0.1
    return 0.4 if "！" <= c <= "～" else -0.5  # half-width kana: bytes of other sets


def _korean(c):
    if c in KOREAN:
        return 1.0
    if "가" <= c <= "힣":
        both = c.encode("cp949", "replace")
        return 0.8 if len(both) == 2 and min(both) >= 0xA1 else -0.3
    return 0.6 if c in PUNCTUATION else -0.3


WEIGHTS = {
    "gb18030": _chinese("gb18030", CHINESE, (0xB0, 0xD7)),
    "cp950": _chinese("cp950", TRADITIONAL, (0xA4, 0xC6)),
    "cp932": _japanese,
    "euc_jp": _japanese,
    "cp949": _korean,
}


def is_text(text):
    """Whether a decoded text has hardly any control characters."""
    bad = sum(unicodedata.category(c) in ("Cc", "Cn", "Co") and c not in "\t\n\r\f\x1a\ufeff" for c in text)
    return bad <= 0.01 * len(text)
