"""Context mixing for the counted file: what brotli codes in 12,400 bytes takes 10,600, and its decoder 650.

In: a file that `trit.bundle.mixing_encoder` wrote. Out: its text, without running it. The file decodes the text bit by bit. Nine contexts
guess the next bit; their guesses are weighed in the logistic domain by weights that learn (PAQ: Mahoney 2005), and an arithmetic coder
writes digits to base 254: the byte values that a raw latin-1 literal holds as they are. Weights and coder are integers, counters use + -
and / alone, so every machine decodes alike. Only log and exp come from the machine's library: their results are rounded, and the encoder
refuses a text where a result lies so near to a rounding edge that another library could fall on the other side.
"""

import functools
import math
import operator
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
ON_EDGE = "a logarithm or exponential lies on a rounding edge; another library could decode another text"
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


def rounded(value):
    """`value` without its fraction; ValueError where it is too near to a whole number to tell (zero is no edge: both sides give 0)."""
    if round(value) and abs(value - round(value)) < MARGIN:
        raise ValueError(ON_EDGE)
    return int(value)


@functools.lru_cache(8)
def decode(payload, length, alphabet):
    """The text of `length` characters behind `payload`, as the decoder in the file finds it, without running that: the same arithmetic in
    the same order. ValueError where another library might round otherwise."""
    tables, by_last, by_prefix, found, text, word, marks = {}, {}, {}, [], "", "", ""
    value, width, at, edge = 0, 1, 0, 1 - MARGIN
    for _ in counted(range(length), "unmixing", length, " characters"):
        held = "", text[-1:], text[-2:], text[-3:], text[-4:], text[-5:-1], word, marks[-2:], marks + word
        histories = [tables.setdefault(key, {}) for key in enumerate(held)]
        first, prefix = by_last.setdefault(text[-1:], [WEIGHT] * 9), 1
        while prefix < alphabet:
            second = by_prefix.setdefault(prefix, [WEIGHT] * 9)
            counters, z = [history.get(prefix) or history.setdefault(prefix, [0.5, FIRST_DIVISOR]) for history in histories], []
            for share, _ in counters:
                logit = LOGIT * math.log(share / (1 - share))
                z.append(int(logit) if MARGIN <= abs(logit - int(logit)) <= edge else rounded(logit))
            total = sum(map(operator.mul, map(operator.add, first, second), z))
            guessed = rounded(65534.5 / (1 + math.exp(-total / SCALE))) + 1 if total else 32768
            while width < FULL:
                digit = ord(payload[at])
                width, value, at = width * BASE, value * BASE + digit - (digit > 13) - 1, at + 1
            part = width * guessed >> 16
            bit = value < part
            value, width = (value, part) if bit else (value - part, width - part)
            error, target = (bit << 16) - guessed, bit * SPAN + FLOOR
            changes = [logit * error >> LEARNING_SHIFT for logit in z]
            first[:] = map(operator.add, first, changes)
            second[:] = map(operator.add, second, changes)
            for counter in counters:
                share, divisor = counter
                counter[:] = share + (target - share) / divisor, divisor + (divisor < LAST_DIVISOR)
            prefix += prefix + bit
        character = chr(prefix - alphabet)
        found.append(character)
        text, word = text[-4:] + character, (word + character) * character.isalnum()
        marks = (marks + character * (word == ""))[-4:]
    text = "".join(found)
    return text if alphabet == 128 else text.encode("l1").decode()


def file_around(payload, quote, length, alphabet, needs_source):
    """The file with its decoder."""
    program = "o" if alphabet == 128 else 'o.encode("l1")'
    lines = SOURCE_LINES.replace("PROGRAM", "o" if alphabet == 128 else 'o.encode("l1").decode()') if needs_source else ""
    decoder = DECODER.replace("LENGTH", str(length)).replace("ALPHABET", str(alphabet))
    decoder = decoder.replace("SOURCE_LINES", lines).replace("PROGRAM", program)
    return HEAD + (quote + payload + quote).encode("l1") + decoder.rstrip().encode()


def mixed_form(wrapped):
    """(payload, length, alphabet) of a file that `mixed_file` wrote, byte for byte its form; None for any other file."""
    if not wrapped.startswith(HEAD):
        return None
    text = wrapped.decode("l1")
    quote, end = text[len(HEAD) :][:3], text.rfind("\nT={};")
    payload = text[len(HEAD) + 3 : end - 3]
    length, alphabet = re.search(r"len\(o\)<(\d{1,7}):", text[end:]), 128 if "c<128" in text[end:] else 256
    if quote not in QUOTES or not length or not 0 < int(length[1]) <= LONGEST:
        return None
    # A payload that ended its own literal, or that Python reads as another text, could hide a program before the decoder.
    if (payload + quote).find(quote) != len(payload) or payload.endswith("\\") or not {"\0", "\r"}.isdisjoint(payload):
        return None
    forms = (file_around(payload, quote, int(length[1]), alphabet, needs_source) for needs_source in (False, True))
    return (payload, int(length[1]), alphabet) if wrapped in forms else None


def expand_mixed(wrapped):
    """The source text in a file that `mixed_file` wrote; None for any other file. Nothing of it is run."""
    form = mixed_form(wrapped)
    try:
        return form and decode(*form)
    except (IndexError, ArithmeticError, ValueError):
        return None


def decoder_bytes(wrapped):
    """Bytes at the start of a file that `mixed_file` wrote which only decode: they read nothing but themselves, so they leave the same
    names behind whenever they run. 0 for any other file."""
    return wrapped.rindex(b"\nT=0;") + 1 if mixed_form(wrapped) else 0
