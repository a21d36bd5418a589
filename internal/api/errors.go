package api

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"math"
	"net/http"
	"strconv"

	"github.com/skerry-dev/skerry"
)

// codeStreamClosed is the code of a stream that the server closed while the command
// keeps running. The Python client then follows the command's log again.
const codeStreamClosed skerry.Code = "sandbox_stream_closed"

// statusOf is the HTTP status of each code. The public clients retry 429 and 5xx twice,
// resume a sandbox on 410 and on 422 with a code that ends in "ing", and show every
// other 4xx to the user. So a full disk and a failed source are 422, not 5xx.
var statusOf = map[skerry.Code]int{
	skerry.CodeBadRequest:           http.StatusBadRequest,
	skerry.CodeTimeoutInvalid:       http.StatusBadRequest,
	skerry.CodeImageInvalid:         http.StatusBadRequest,
	skerry.CodeExecutableNotFound:   http.StatusBadRequest,
	skerry.CodeUnauthorized:         http.StatusUnauthorized,
	skerry.CodeForbidden:            http.StatusForbidden,
	skerry.CodeNotFound:             http.StatusNotFound,
	skerry.CodeConflict:             http.StatusConflict,
	skerry.CodeSandboxStopped:       http.StatusGone,
	skerry.CodeSnapshotNotFound:     http.StatusGone,
	skerry.CodeSnapshotIncompatible: http.StatusUnprocessableEntity,
	skerry.CodeTooLarge:             http.StatusRequestEntityTooLarge,
	skerry.CodeSandboxStopping:      http.StatusUnprocessableEntity,
	skerry.CodeSandboxSnapshotting:  http.StatusUnprocessableEntity,
	skerry.CodeDiskFull:             http.StatusUnprocessableEntity,
	skerry.CodeSandboxUnsavable:     http.StatusUnprocessableEntity,
	skerry.CodeSourceFailed:         http.StatusUnprocessableEntity,
	skerry.CodeRateLimited:          http.StatusTooManyRequests,
	skerry.CodeInternal:             http.StatusInternalServerError,
	skerry.CodeNotImplemented:       http.StatusNotImplemented,
	skerry.CodeUnavailable:          http.StatusServiceUnavailable,
	skerry.CodeStdinUnavailable:     http.StatusBadRequest,
	skerry.CodeStdinTimeout:         http.StatusGatewayTimeout,
	codeStreamClosed:                http.StatusServiceUnavailable,
}

// maxRetryAfter is the most that clients wait before they try again, in seconds; if they
// should wait longer, they give up.
const maxRetryAfter = 20

// retryAfter is the number of seconds after which a client should retry a call that was
// refused because of load.
func retryAfter(err error) int {
	var e *skerry.Error
	if !errors.As(err, &e) {
		return 1
	}
	return min(max(int(math.Ceil(e.RetryAfter.Seconds())), 1), maxRetryAfter)
}

// errorResponse is the body of an error.
type errorResponse struct {
	Error errorBody `json:"error"`
}

type errorBody struct {
	Code    skerry.Code `json:"code" doc:"Kind of the error, for programs."`
	Message string      `json:"message" doc:"Human-readable description of the error."`
	Field   string      `json:"field,omitempty" doc:"Path of the request field at fault, such as resources.vcpus."`
	// Resource tells programs what the error is about, so that they need not read the
	// message.
	Resource     skerry.Resource `json:"resource,omitempty" doc:"Kind of the resource that does not exist, or whose state forbids the call: sandbox, session, command, snapshot or drive."`
	BytesWritten *int64          `json:"bytesWritten,omitempty" doc:"With command_stdin_timeout: total number of input bytes written to the command."`
	Status       int             `json:"status,omitempty" doc:"HTTP status of the error. Present if the response had already started with status 200 because the call took long."`
	// RequestID is set for server errors, whose cause is only in the log.
	RequestID string `json:"requestId,omitempty" doc:"Id of the request in the server's log."`
}

// visible returns the status and the body of err for the client. An error that is not
// a *skerry.Error is shown as "internal error".
func visible(err error, requestID string) (int, errorBody) {
	var e *skerry.Error
	if !errors.As(err, &e) && errors.Is(err, context.DeadlineExceeded) {
		e = &skerry.Error{Code: skerry.CodeUnavailable, Message: "the server did not finish in time; try again"}
	}
	if e == nil {
		return http.StatusInternalServerError, errorBody{
			Code: skerry.CodeInternal, Message: "internal error", RequestID: requestID,
		}
	}
	status, ok := statusOf[e.Code]
	if !ok {
		status = http.StatusInternalServerError
	}
	body := errorBody{Code: e.Code, Message: e.Message, Field: e.Field, Resource: e.Resource, BytesWritten: e.BytesWritten}
	// The message of a 400 names the field, because some clients show only the message.
	if e.Field != "" {
		body.Message = e.Field + ": " + e.Message
	}
	if status >= 500 && status != http.StatusNotImplemented {
		body.RequestID = requestID
	}
	return status, body
}

// logFailure logs an error of which the client does not see everything.
func logFailure(ctx context.Context, log *slog.Logger, err error, status int) {
	level := slog.LevelDebug
	switch {
	case ctx.Err() != nil: // the client is gone; nothing has failed here
	case status == http.StatusInternalServerError:
		level = slog.LevelError
	case status >= 500 && status != http.StatusNotImplemented:
		level = slog.LevelWarn
	}
	log.Log(context.WithoutCancel(ctx), level, "request failed", "status", status, "err", err)
}

// writeError sends an error. The response must not have begun.
func writeError(ctx context.Context, w *response, log *slog.Logger, requestID string, err error) {
	status, body := visible(err, requestID)
	logFailure(ctx, log, err, status)
	if w.beganEarly() {
		body.Status = status
	}
	h := w.Header()
	h.Del("Content-Length")
	switch status {
	case http.StatusUnauthorized:
		h.Set("WWW-Authenticate", "Bearer")
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		h.Set("Retry-After", strconv.Itoa(retryAfter(err)))
	}
	writeJSON(w, status, errorResponse{Error: body})
}

// writeJSON sends v. Errors are ignored: every v can be encoded, and a client that is
// gone needs no response.
func writeJSON(w http.ResponseWriter, status int, v any) {
	data, err := json.Marshal(v)
	if err != nil {
		panic("encoding a response: " + err.Error())
	}
	h := w.Header()
	h.Set("Content-Type", "application/json; charset=utf-8")
	h.Set("Content-Length", strconv.Itoa(len(data)))
	w.WriteHeader(status)
	_, _ = w.Write(data)
}
