"""Packings of the counted file by bytes and by seconds to start: python -m benchmarks.decoders RECORD [--repeats N]

Every decoder below decodes the program of the record, which is compared, and is timed alone: nothing of the program runs. Bytes are those of
the whole file. `mixing` is what trit/bundle/mixing.py writes; the others change its decoder (the same digits) or what it knows (other digits):
  function   in a function, whose names are local
  get        also makes no counter that it does not keep
  numpy      all counters of a bit at once, in arrays
  characters all counters of a character's bits at once
  N contexts without the contexts that are worth least, in a function
"""

import argparse
import time
from pathlib import Path
from unittest import mock

import brotli

from trit.bundle import mixing, mixing_encoder
from trit.bundle.wrap import expand
from trit.console import command

CONTEXTS = ('""', "o[-1:]", "o[-2:]", "o[-3:]", "o[-4:]", "o[-5:-1]", "w", "p[-2:]", "p+w")
FEWER = ((0, 1, 2, 3, 4, 6, 7, 8), (1, 2, 3, 4, 6, 7, 8), (1, 2, 3, 5, 6, 8), (1, 2, 3, 4, 8))
COUNTERS = "g.setdefault(c,[.5,1.2])"
NUMPY = """
import numpy as n
def d():
 A=n.full(ROWS,.5);B=A*0+1.2;T={};U={};o=w=p="";x=i=0;r=1
 while len(o)<LENGTH:
  h=n.array([T.setdefault(k,len(T)*ALPHABET)for k in enumerate((CONTEXTS))]);c=1
  while c<ALPHABET:
   u,v=[U.setdefault(k,n.full(COUNT,4000))for k in(o[-1:],c)];a=h+c;q=A[a];z=(256*n.log(q/(1-q))).astype(int);d=int(65534.5/(1+math.exp(-int((u+v)@z)/1e7)))+1
   while r<4e9:r*=254;b=ord(s[i]);i+=1;x=x*254+b-(b>13)-1
   t=r*d>>16;b=x<t
   if b:r=t
   else:x-=t;r-=t
   c+=c+b;q=z*((b<<16)-d)>>16;u+=q;v+=q;e=B[a];A[a]+=(b*.999+5e-4-A[a])/e;B[a]=e+(e<14)
  k=chr(c-ALPHABET);o+=k;w=(w+k)*k.isalnum();p=(p+k*(w==""))[-4:]
 return o
exec(d())
"""
NUMPY_CHARACTERS = """
import numpy as n
def d():
 A=n.full((2,ROWS,ALPHABET),.5);A[1]+=.7;V=n.full((ALPHABET,COUNT),4000);T={};U={};o=w=p="";x=i=0;r=1
 while len(o)<LENGTH:
  h=[T.setdefault(k,len(T))for k in enumerate((CONTEXTS))];q,e=A[:,h];z=(256*n.log(q/(1-q))).astype(int).T;u=U.setdefault(o[-1:],V[0]+0);c=1;P=[];B=[];Y=[]
  while c<ALPHABET:
   y=z[c];d=int(65534.5/(1+math.exp(-int((u+V[c])@y)/1e7)))+1
   while r<4e9:r*=254;b=ord(s[i]);i+=1;x=x*254+b-(b>13)-1
   t=r*d>>16;b=x<t
   if b:r=t
   else:x-=t;r-=t
   y=y*((b<<16)-d)>>16;u+=y;P+=[c];B+=[b];Y+=[y];c+=c+b
  V[P]+=Y;f=q[:,P];m=e[:,P];q[:,P]+=(n.array(B)*.999+5e-4-f)/m;e[:,P]+=m<14;A[:,h]=q,e;k=chr(c-ALPHABET);o+=k;w=(w+k)*k.isalnum();p=(p+k*(w==""))[-4:]
 return o
exec(d())
"""


def in_function(decoder):
    """The decoder as a function."""
    lines = decoder.strip().split("\n")[:-1]
    return "\ndef d():\n" + "\n".join(f" {line}" for line in lines) + "\n return o\nexec(d())\n"


def with_contexts(decoder, kept):
    """The decoder with the contexts of these numbers alone."""
    text = decoder.replace(",".join(CONTEXTS), ",".join(CONTEXTS[number] for number in kept))
    return text.replace("range(9)", f"range({len(kept)})").replace("]*9", f"]*{len(kept)}")


def encoded(source, kept):
    """Digits of a text coded with the contexts of these numbers alone."""
    contexts_of = mixing_encoder.contexts_of
    with mock.patch.object(mixing_encoder, "contexts_of", lambda text: contexts_of(text)[list(kept)]):
        return mixing_encoder.encode.__wrapped__(source)


def file_of(source, decoder, payload):
    """The file of a text in ASCII with a decoder of its digits."""
    quote = next(quote for quote in mixing.QUOTES if quote not in payload)
    with mock.patch.object(mixing, "DECODER", decoder):
        return mixing.file_around(payload, quote, len(source), 128, False)


def measured(file, repeats):
    """(text that the decoder of a file finds, fewest CPU seconds it takes)."""
    body, end = file.decode("l1"), file.decode("l1").rindex("\n")
    last = body[end + 1 :].removeprefix("T=0;")
    program = compile(body[: end + 1] + last.replace("exec(", "found=("), "decoder", "exec")
    seconds = []
    for _ in range(repeats):
        names, begin = {}, time.process_time()
        exec(program, names)
        seconds.append(time.process_time() - begin)
    return names["found"], min(seconds)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", type=Path, help="folder of a record, or a counted file")
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args(arguments)
    path = options.record / "train_gpt.py" if options.record.is_dir() else options.record
    with command():
        source = expand(path.read_bytes())
        if not source.isascii():
            raise ValueError(f"{path}: the program is not in ASCII, and the decoders here are for texts that are")
    plain, function = mixing.DECODER, in_function(mixing.DECODER)
    rows = int(mixing_encoder.contexts_of(source).max() + 1)
    numpy, characters = (
        text.replace("ROWS", str(number)).replace("CONTEXTS", ",".join(CONTEXTS)).replace("COUNT", "9")
        for text, number in ((NUMPY, 128 * rows), (NUMPY_CHARACTERS, rows))
    )
    whole = mixing_encoder.encode(source)
    ways = {
        "mixing": (plain, whole),
        "function": (function, whole),
        "get": (function.replace(COUNTERS, f"g.get(c)or {COUNTERS}"), whole),
        "numpy": (numpy, whole),
        "characters": (characters, whole),
    }
    for kept in FEWER:
        ways[f"{len(kept)} contexts"] = with_contexts(function, kept), encoded(source, kept)
    print(f"{len(source)} characters; brotli alone {len(brotli.compress(source.encode()))} bytes\n{'way':<12}{'bytes':>8}{'CPU s':>8}")
    for name, (decoder, payload) in ways.items():
        file = file_of(source, decoder, payload)
        found, seconds = measured(file, options.repeats)
        assert found == source, f"{name} does not give the text back"
        print(f"{name:<12}{len(file):>8}{seconds:>8.2f}", flush=True)


if __name__ == "__main__":
    main()
