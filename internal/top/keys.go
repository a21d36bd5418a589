package top

// key is an action that a user chooses with a key.
type key int

const (
	keyNone key = iota
	keyQuit
	keyLeft
	keyRight
	keyReverse
	keyUp
	keyDown
	keyPageUp
	keyPageDown
	keyHome
	keyEnd
)

// plainKeys are those of one character.
var plainKeys = map[byte]key{
	'q': keyQuit, 'Q': keyQuit, 0x03: keyQuit, 0x04: keyQuit, // Ctrl-C, Ctrl-D
	'r': keyReverse, 'R': keyReverse, '<': keyLeft, '>': keyRight, ',': keyLeft, '.': keyRight,
	'h': keyLeft, 'l': keyRight, 'k': keyUp, 'j': keyDown, 'g': keyHome, 'G': keyEnd,
}

// sequences are those that terminals send as ESC [ or ESC O and this.
var sequences = map[string]key{
	"A": keyUp, "B": keyDown, "C": keyRight, "D": keyLeft, "H": keyHome, "F": keyEnd,
	"1~": keyHome, "4~": keyEnd, "7~": keyHome, "8~": keyEnd, "5~": keyPageUp, "6~": keyPageDown,
}

// keyboard reads keys from a terminal's input, where a key may arrive in pieces.
type keyboard struct {
	// sequence is the part of an escape sequence that has arrived.
	sequence []byte
}

// longestSequence is the maximum length of sequence.
const longestSequence = 16

// keys returns the keys that are complete.
func (k *keyboard) keys(sent []byte) (all []key) {
	for _, b := range sent {
		if b == 0x1b {
			k.sequence = []byte{b}
			continue
		}
		if len(k.sequence) == 0 {
			if key := plainKeys[b]; key != keyNone {
				all = append(all, key)
			}
			continue
		}
		k.sequence = append(k.sequence, b)
		if len(k.sequence) == 2 && (b == '[' || b == 'O') {
			continue
		}
		// It ends with a letter or a tilde.
		if ends := b >= 0x40 && b <= 0x7e; ends || len(k.sequence) >= longestSequence {
			if len(k.sequence) > 2 {
				if key := sequences[string(k.sequence[2:])]; key != keyNone {
					all = append(all, key)
				}
			}
			k.sequence = nil
		}
	}
	return all
}
