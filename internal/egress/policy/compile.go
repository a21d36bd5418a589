package policy

// Compiled decides by a policy. It does not change and may be shared.
type Compiled struct{}

// Compile checks a policy and makes it quick to decide by. Its errors are
// *Error.
func Compile(p Policy) (*Compiled, error) { return nil, nil }
