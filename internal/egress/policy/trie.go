package policy

import "strings"

// trie finds the most specific pattern for a name. It is ordered by labels
// from the right.
type trie struct {
	children map[string]*trie
	// one is below "*" for one label.
	one *trie
	// site is of the pattern that ends here, deep of the one that has a
	// leading "*" to the left of here.
	site, deep *Site
}

// slot returns where the site of a normalized pattern belongs.
func (t *trie) slot(pattern string) **Site {
	for {
		if pattern == "*" {
			return &t.deep
		}
		label, rest, more := lastLabel(pattern)
		t = t.child(label)
		if !more {
			return &t.site
		}
		pattern = rest
	}
}

func (t *trie) child(label string) *trie {
	if label == "*" {
		if t.one == nil {
			t.one = &trie{}
		}
		return t.one
	}
	c := t.children[label]
	if c == nil {
		c = &trie{}
		if t.children == nil {
			t.children = map[string]*trie{}
		}
		t.children[label] = c
	}
	return c
}

// find walks at the most once through each node.
func (t *trie) find(name string) *Site {
	label, rest, more := lastLabel(name)
	for _, c := range [2]*trie{t.children[label], t.one} {
		switch {
		case c == nil:
		case !more:
			if c.site != nil {
				return c.site
			}
		default:
			if s := c.find(rest); s != nil {
				return s
			}
		}
	}
	return t.deep
}

func lastLabel(name string) (label, rest string, more bool) {
	if i := strings.LastIndexByte(name, '.'); i >= 0 {
		return name[i+1:], name[:i], true
	}
	return name, "", false
}
