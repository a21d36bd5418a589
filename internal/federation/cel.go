package federation

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/ext"

	"github.com/skerry-dev/skerry"
)

// Limits of expressions. A unit of cost is about 0.1 µs; what a rule needs is 5 to 50.
const (
	// MaxRuleCost is the cost of one expression.
	MaxRuleCost = 10_000
	// MaxCost is the cost of all expressions and patterns that are evaluated for a token.
	MaxCost = 100_000
	// maxRegexp is the size of a compiled regular expression, in instructions. Matching
	// takes time in proportion to it and to the length of the claim.
	maxRegexp = 256
	// maxExpressionDepth bounds what the parser recurses into.
	maxExpressionDepth = 32
)

// functions are what expressions may call, besides operators. It is a list so that an
// update of the library does not extend the language. Functions that make much of
// little, such as format, are not in it; the cost of replace and join counts what
// they return.
var functions = []string{
	"contains", "endsWith", "startsWith", "matches", "size",
	"indexOf", "lastIndexOf", "join", "lowerAscii", "upperAscii", "replace", "split", "substring", "trim",
	"bool", "int", "string", "double", "type",
}

// environment is the language of expressions. Of the macros it has those whose result is
// a single boolean, so that lists do not grow, and they cannot be nested.
var environment = sync.OnceValues(func() (*cel.Env, error) {
	return cel.NewEnv(
		cel.Variable("claims", cel.MapType(cel.StringType, cel.DynType)),
		ext.Strings(),
		cel.ClearMacros(), cel.Macros(cel.HasMacro, cel.ExistsMacro, cel.AllMacro),
		cel.CrossTypeNumericComparisons(true),
		cel.ParserExpressionSizeLimit(MaxExpression), cel.ParserRecursionLimit(maxExpressionDepth), cel.ExpressionNodeLimit(MaxExpression),
		cel.ASTValidators(cel.ValidateRegexLiterals(), cel.ValidateComprehensionNestingLimit(1)),
		cel.RegexProgramSizeLimit(maxRegexp),
	)
})

// expression is a CEL expression over the claims of a token. It is safe for concurrent
// use.
type expression struct{ program cel.Program }

var (
	isBool   = cel.BoolType
	isString = cel.StringType
)

// compileExpression compiles an expression that returns a value of a type. Types of
// claims are not known in advance, so that type may also be dynamic.
func compileExpression(field, source string, result *cel.Type) (*expression, error) {
	if len(source) > MaxExpression {
		return nil, skerry.Invalid(field, "must have at most %d bytes, has %d", MaxExpression, len(source))
	}
	env, err := environment()
	if err != nil {
		return nil, fmt.Errorf("make the environment of expressions: %w", err)
	}
	checked, issues := env.Compile(source)
	if issues.Err() != nil {
		return nil, skerry.Invalid(field, "the expression does not compile: %s", describe(issues))
	}
	if out := checked.OutputType(); !out.IsExactType(result) && !out.IsExactType(cel.DynType) {
		return nil, skerry.Invalid(field, "the expression must return %s, returns %s", result, out)
	}
	if err := permitted(checked.NativeRep().Expr()); err != nil {
		return nil, skerry.Invalid(field, "%v", err)
	}
	program, err := env.Program(checked, cel.CostLimit(MaxRuleCost), cel.EvalOptions(cel.OptOptimize))
	if err != nil {
		return nil, skerry.Invalid(field, "the expression cannot be evaluated: %.256s", err)
	}
	return &expression{program}, nil
}

// describe returns the first errors of a compilation, in one line.
func describe(issues *cel.Issues) string {
	var s []string
	for _, e := range issues.Errors() {
		if len(s) == 3 {
			break
		}
		s = append(s, fmt.Sprintf("%d:%d: %.256s", e.Location.Line(), e.Location.Column()+1, e.Message))
	}
	return strings.Join(s, "; ")
}

// permitted checks what an expression calls.
func permitted(e ast.Expr) error {
	var failed error
	ast.PreOrderVisit(e, ast.NewExprVisitor(func(e ast.Expr) {
		if e.Kind() != ast.CallKind || failed != nil {
			return
		}
		call := e.AsCall()
		name := call.FunctionName()
		if _, operator := operators.FindReverse(name); operator || slices.Contains(internal, name) {
			return
		}
		if !slices.Contains(functions, name) {
			failed = fmt.Errorf("the function %.32q is not available in expressions", name)
		}
		// A pattern from a claim would be compiled for each token.
		if name == "matches" && call.Args()[len(call.Args())-1].Kind() != ast.LiteralKind {
			failed = errors.New("the pattern of matches must be a literal")
		}
	}))
	return failed
}

// internal are operators without a symbol, which macros use.
var internal = []string{operators.NotStrictlyFalse, operators.Conditional, operators.Index}

// evaluation is the evaluation of rules for a token.
type evaluation struct {
	claims map[string]any
	// value is what expressions see of the claims. It is made when it is needed.
	value map[string]any
	cost  uint64
}

func newEvaluation(claims map[string]any) *evaluation { return &evaluation{claims: claims} }

var (
	errCost    = errors.New("the rules take too much time for the claims of this token")
	errMissing = errors.New("a claim is missing")
)

func (x *expression) eval(e *evaluation) (ref.Val, error) {
	if e.value == nil {
		e.value = map[string]any{"claims": types.DefaultTypeAdapter.NativeToValue(e.claims)}
	}
	if e.cost > MaxCost {
		return nil, errCost
	}
	v, details, err := x.program.Eval(e.value)
	if cost := details.ActualCost(); cost != nil {
		e.cost += *cost
	}
	switch {
	case err == nil:
		return v, nil
	case strings.Contains(err.Error(), "cost limit exceeded"):
		return nil, errCost
	case strings.HasPrefix(err.Error(), "no such key"):
		return nil, errMissing
	default: // it may have values of claims
		return nil, errors.New("the expression does not fit the types or values of the claims")
	}
}

// truth evaluates a condition. It is false if a claim is missing. All other errors are
// errors: a caller who provokes them must not get past this rule to the next.
func (x *expression) truth(e *evaluation) (bool, error) {
	v, err := x.eval(e)
	if errors.Is(err, errMissing) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	b, is := v.(types.Bool)
	if !is {
		return false, errors.New("the expression does not return a boolean for this token")
	}
	return bool(b), nil
}

func (x *expression) text(e *evaluation) (string, error) {
	v, err := x.eval(e)
	if err != nil {
		return "", err
	}
	s, is := v.(types.String)
	if !is {
		return "", errors.New("the expression does not return a string for this token")
	}
	return string(s), nil
}
