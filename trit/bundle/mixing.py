"""Context mixing for the counted file: what brotli codes in 12,400 bytes takes 10,600, and its decoder 650.

In: source text. Out: a Python file that decodes the text bit by bit and runs it. Nine contexts guess the next bit; their guesses are
weighed in the logistic domain by weights that learn (PAQ: Mahoney 2005), and an arithmetic coder writes digits to base 254: the byte
values that a raw latin-1 literal holds as they are. Weights and coder are integers, counters use + - and / alone, so every machine decodes
alike. Only log and exp come from the machine's library: their results are rounded, and `encode` refuses a text where a result lies so
near to a rounding edge that another library could fall on the other side.
"""

import functools
import math
import re

from trit.console import counted

BASE = 254  # byte values but NUL, which Python refuses, and CR, which it reads as LF
FULL = 4e9  # the coder's range is kept above this
LOGIT = 256  # steps of a guess in one nat
SCALE = 1e7  # weight times guess in one nat
WEIGHT, LEARNING_SHIFT = 4000, 16
FIRST_DIVISOR, LAST_DIVISOR = 1.2, 14
FLOOR, SPAN = 5e-4, 0.999  # shares stay off 0 and 1, so that no logarithm, and no step of a weight, is wild
MARGIN = 2e-10  # of a rounding step: good libraries differ by 2e-11 at most, and one text in 2,000 is refused
LONGEST = 1 << 20
QUOTES = ("'''", '"""')
HEAD = b"#coding:l1\nimport math\ns=r"
DECODER = """
T={};o=w=p="";x=i=0;r=1
while len(o)<LENGTH:
 h=[T.setdefault(k,{})for k in enumerate(("",o[-1:],o[-2:],o[-3:],o[-4:],o[-5:-1],w,p[-2:],p+w))];c=1
 while c<ALPHABET:
  u,v=[T.setdefault(k,[4000]*9)for k in(o[-1:],c)];a=[g.setdefault(c,[.5,1.2])for g in h];z=[int(256*math.log(q/(1-q)))for q,n in a];d=int(65534.5/(1+math.exp(-sum((f+g)*q for f,g,q in zip(u,v,z))/1e7)))+1
  while r<4e9:r*=254;b=ord(s[i]);i+=1;x=x*254+b-(b>13)-1
  t=r*d>>16;b=x<t
  if b:r=t
  else:x-=t;r-=t
  c+=c+b;e=(b<<16)-d
  for k in range(9):q=z[k]*e>>16;u[k]+=q;v[k]+=q;f,n=a[k];a[k][:]=f+(b*.999+5e-4-f)/n,n+(n<14)
 k=chr(c-ALPHABET);o+=k;w=(w+k)*k.isalnum();p=(p+k*(w==""))[-4:]
T=0;SOURCE_LINESexec(PROGRAM)
"""  # fmt: skip
SOURCE_LINES = 'import linecache as l;l.cache["<string>"]=0,None,PROGRAM.splitlines(1),"";'


class _Model:
    """Guesses the bits of a text whose characters lie below `alphabet`, a power of two. The same arithmetic as the decoder's, in its order."""

    def __init__(self, alphabet):
        self.alphabet, self.tables = alphabet, {}
        self.text = self.word = self.marks = ""
        self.start()

    def start(self):
        """Look up the contexts of the character that comes."""
        text, word, marks = self.text, self.word, self.marks
        contexts = "", text[-1:], text[-2:], text[-3:], text[-4:], text[-5:-1], word, marks[-2:], marks + word
        self.histories, self.prefix = [self.tables.setdefault(key, {}) for key in enumerate(contexts)], 1

    def guess(self):
        """Probability of a one in 65536 parts, 1 to 65535. ValueError where another library might round otherwise."""
        self.weights = [self.tables.setdefault(key, [WEIGHT] * 9) for key in (self.text[-1:], self.prefix)]
        self.counters = [history.setdefault(self.prefix, [0.5, FIRST_DIVISOR]) for history in self.histories]
        self.logits = [rounded(LOGIT * math.log(share / (1 - share))) for share, _ in self.counters]
        total = sum((a + b) * logit for a, b, logit in zip(*self.weights, self.logits))
        self.guessed = rounded(65534.5 / (1 + math.exp(-total / SCALE))) + 1 if total else 32768
        return self.guessed

    def learn(self, bit):
        """Take in the bit that came."""
        error, (first, second) = (bit << 16) - self.guessed, self.weights
        for index, (logit, counter) in enumerate(zip(self.logits, self.counters)):
            change = logit * error >> LEARNING_SHIFT
            first[index] += change
            second[index] += change
            share, divisor = counter
            counter[:] = share + (bit * SPAN + FLOOR - share) / divisor, divisor + (divisor < LAST_DIVISOR)
        self.prefix += self.prefix + bit
        if self.prefix >= self.alphabet:
            character = chr(self.prefix - self.alphabet)
            self.text = self.text[-4:] + character
            self.word = (self.word + character) * character.isalnum()
            self.marks = (self.marks + character * (self.word == ""))[-4:]
            self.start()


def rounded(value):
    """`value` without its fraction; ValueError where it is too near to a whole number to tell (zero is no edge: both sides give 0)."""
    if round(value) and abs(value - round(value)) < MARGIN:
        raise ValueError("a logarithm or exponential lies on a rounding edge; another library could decode another text")
    return int(value)


def latin(text):
    """(`text` as characters below the alphabet's size, that size): itself where it is ASCII, else its UTF-8 bytes."""
    return (text, 128) if text.isascii() else (text.encode().decode("l1"), 256)


@functools.lru_cache(8)
def encode(text):
    """Digits (below BASE, one character each) of a text. ValueError where it cannot be coded: see `rounded`."""
    characters, alphabet = latin(text)
    model, low, width, digits = _Model(alphabet), 0, 1, 0
    for character in counted(characters, "mixing", len(characters), " characters"):
        for place in reversed(range(alphabet.bit_length() - 1)):
            bit = ord(character) >> place & 1
            part = model.guess()
            while width < FULL:
                width, low, digits = width * BASE, low * BASE, digits + 1
            part = width * part >> 16
            low, width = (low, part) if bit else (low + part, width - part)
            model.learn(bit)
    value, out = low // BASE * BASE + BASE, []  # a last digit of zero is neither a quote nor a backslash
    for _ in range(digits):
        value, digit = divmod(value, BASE)
        out.append(chr(digit + 1 + (digit > 11)))
    return "".join(reversed(out))


@functools.lru_cache(8)
def decode(payload, length, alphabet):
    """The text of `length` characters behind `payload`, as the decoder in the file finds it, without running that."""
    model, value, width, at, found = _Model(alphabet), 0, 1, 0, []
    for _ in counted(range(length), "unmixing", length, " characters"):
        character = 0
        for _ in range(alphabet.bit_length() - 1):
            part = model.guess()
            while width < FULL:
                digit = ord(payload[at])
                width, value, at = width * BASE, value * BASE + digit - (digit > 13) - 1, at + 1
            part = width * part >> 16
            bit = value < part
            value, width = (value, part) if bit else (value - part, width - part)
            model.learn(bit)
            character += character + bit
        found.append(chr(character))
    text = "".join(found)
    return text if alphabet == 128 else text.encode("l1").decode()


def file_around(payload, quote, length, alphabet, needs_source):
    """The file with its decoder."""
    program = "o" if alphabet == 128 else 'o.encode("l1")'
    lines = SOURCE_LINES.replace("PROGRAM", "o" if alphabet == 128 else 'o.encode("l1").decode()') if needs_source else ""
    decoder = DECODER.replace("LENGTH", str(length)).replace("ALPHABET", str(alphabet))
    decoder = decoder.replace("SOURCE_LINES", lines).replace("PROGRAM", program)
    return HEAD + (quote + payload + quote).encode("l1") + decoder.rstrip().encode()


def mixed_file(source, needs_source=False):
    """The counted file of a source text, or None where this way of packing cannot hold it."""
    characters, alphabet = latin(source)
    if not 0 < len(characters) <= LONGEST:
        return None
    try:
        payload = encode(source)
    except (ValueError, ArithmeticError):
        return None
    quotes = [quote for quote in QUOTES if quote not in payload]
    return file_around(payload, quotes[0], len(characters), alphabet, needs_source) if quotes else None


def expand_mixed(wrapped):
    """The source text in a file that `mixed_file` wrote, byte for byte its form; None for any other file. Nothing of it is run."""
    if not wrapped.startswith(HEAD):
        return None
    text = wrapped.decode("l1")
    quote, end = text[len(HEAD) :][:3], text.rfind("\nT={};")
    payload = text[len(HEAD) + 3 : end - 3]
    length, alphabet = re.search(r"len\(o\)<(\d{1,7}):", text[end:]), 128 if "c<128" in text[end:] else 256
    if quote not in QUOTES or not length or not 0 < int(length[1]) <= LONGEST:
        return None
    for needs_source in (False, True):
        if wrapped == file_around(payload, quote, int(length[1]), alphabet, needs_source):
            try:
                return decode(payload, int(length[1]), alphabet)
            except (IndexError, ArithmeticError, ValueError):
                return None
    return None
