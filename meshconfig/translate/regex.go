package translate

import "regexp/syntax"

// maxRegexSize is what one expression may have of regexSize: enough for a
// header's grammar, and little enough that a gateway holds a value of 64 KB
// against it in a second or less.
const maxRegexSize = 1000

// maxRegexSizes is what all of an APIRule may have, whatever its budget: one
// request may be held against them all.
const maxRegexSizes = 16 * maxRegexSize

// rangesPerInstruction of a character class take as much memory as an
// instruction.
const rangesPerInstruction = 8

// regexSize is an upper estimate of the instructions that an expression compiles
// to, which is what it costs to hold and, for each character, to match. It is
// told from the parsed text: x{1000} is not written out. What cannot be parsed is
// refused elsewhere.
func regexSize(text string) int {
	re, err := syntax.Parse(text, syntax.Perl)
	if err != nil {
		return 1
	}
	const whole = 4 // match the whole value or fail
	return whole + instructions(re) + ranges(re)/rangesPerInstruction
}

// instructions of [syntax.Compile]. The parser bounds how deep repetitions
// multiply (1,000), so this does not overflow.
func instructions(re *syntax.Regexp) int {
	n := 0
	for _, sub := range re.Sub {
		n += instructions(sub)
	}
	switch re.Op {
	case syntax.OpLiteral:
		n = len(re.Rune)
	case syntax.OpStar, syntax.OpCapture:
		n += 2
	case syntax.OpPlus, syntax.OpQuest:
		n++
	case syntax.OpAlternate:
		n += len(re.Sub) - 1
	case syntax.OpRepeat:
		if re.Max < 0 { // xxx+, or x*
			n = max(1, re.Min)*n + 2
		} else { // xx(x(x)?)?
			n = re.Max*n + re.Max - re.Min
		}
	}
	return max(1, n)
}

// ranges of all character classes; repetitions share theirs.
func ranges(re *syntax.Regexp) int {
	n := 0
	if re.Op == syntax.OpCharClass {
		n = len(re.Rune) / 2
	}
	for _, sub := range re.Sub {
		n += ranges(sub)
	}
	return n
}
