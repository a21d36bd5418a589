package nodeapi

import (
	"context"
	"errors"

	"github.com/skerry-dev/skerry"
)

// ErrUnreachable is in the chain of an error that means "the outcome is not known":
// the call may have been executed, or not, or may still be running. It says nothing
// about the state of a session or a command.
var ErrUnreachable = errors.New("the node does not answer")

// Unreachable returns the error of a call whose outcome is not known, for the given
// cause. To a client it is a CodeUnavailable.
func Unreachable(cause error) error {
	// The cause is not wrapped: it may have the code of a definite answer.
	return &skerry.Error{
		Code:    skerry.CodeUnavailable,
		Message: "the machine that runs the sandbox does not answer at the moment; try again later",
		Err:     &unreachable{cause},
	}
}

type unreachable struct{ cause error }

func (e *unreachable) Error() string {
	if e.cause == nil {
		return ErrUnreachable.Error()
	}
	return ErrUnreachable.Error() + ": " + e.cause.Error()
}

func (e *unreachable) Is(target error) bool { return target == ErrUnreachable }

// OutcomeUnknown reports whether err leaves open what became of a call: the node
// does not answer, or the caller's context ended first.
func OutcomeUnknown(err error) bool {
	if errors.Is(err, ErrUnreachable) {
		return true
	}
	if _, ok := errors.AsType[*skerry.Error](err); ok {
		return false
	}
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// Narrow returns err as one of the errors that may cross the seam (see the package
// comment). ctx is the context of the call that failed. Implementations call it on
// every way out:
//
//	defer func() { err = nodeapi.Narrow(ctx, err) }()
func Narrow(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*skerry.Error](err); ok {
		return err
	}
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return err
	}
	if errors.Is(err, context.DeadlineExceeded) { // one of the node's own
		return &skerry.Error{Code: skerry.CodeUnavailable, Message: "the sandbox did not answer in time; try again", Err: err}
	}
	return &skerry.Error{Code: skerry.CodeInternal, Message: "internal error", Err: err}
}
