package egress

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	testing_grpc "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/skerry-dev/skerry/internal/egress/policy"
)

// echoService answers what it is sent, if the call has the key that the rule
// sets; what it is told to fail with, it fails with.
type echoService struct {
	testing_grpc.UnimplementedTestServiceServer
	canceled chan struct{}
}

func authorized(ctx context.Context) error {
	if md, _ := metadata.FromIncomingContext(ctx); len(md.Get("x-key")) != 1 || md.Get("x-key")[0] != "s3cret" {
		return status.Errorf(codes.Unauthenticated, "x-key is %q", md.Get("x-key"))
	}
	return nil
}

func (s *echoService) UnaryCall(ctx context.Context, r *testing_grpc.SimpleRequest) (*testing_grpc.SimpleResponse, error) {
	if err := authorized(ctx); err != nil {
		return nil, err
	}
	if err := grpc.SetTrailer(ctx, metadata.Pairs("x-trailer", "kept")); err != nil {
		return nil, err
	}
	if e := r.ResponseStatus; e != nil {
		return nil, status.Error(codes.Code(e.Code), e.Message)
	}
	return &testing_grpc.SimpleResponse{Payload: r.Payload}, nil
}

func (s *echoService) FullDuplexCall(stream testing_grpc.TestService_FullDuplexCallServer) error {
	if err := authorized(stream.Context()); err != nil {
		return err
	}
	for {
		r, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			stream.SetTrailer(metadata.Pairs("x-trailer", "kept"))
			return status.Error(codes.Aborted, "at the end")
		case err != nil:
			<-stream.Context().Done()
			close(s.canceled)
			return err
		}
		if err := stream.Send(&testing_grpc.StreamingOutputCallResponse{Payload: r.Payload}); err != nil {
			return err
		}
	}
}

// newGRPC serves the service in the lab and returns a client of it in a sandbox.
func newGRPC(t *testing.T, r *rig, service *echoService) testing_grpc.TestServiceClient {
	t.Helper()
	l, err := labListen(dnsAddr + ":443")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{GetCertificate: labCertificate})))
	testing_grpc.RegisterTestServiceServer(server, service)
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	conn, err := grpc.NewClient("passthrough:///grpc.example.com:443",
		grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: r.ca})),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) { return dialFrom(lab.sb1, "tcp", dnsAddr+":443") }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	})
	return testing_grpc.NewTestServiceClient(conn)
}

// TestGRPC makes calls through TLS that is ended, with a rule that sets the key.
func TestGRPC(t *testing.T) {
	r := newRig(t, policy.Policy{Mode: policy.Custom, Domains: []policy.Domain{{
		Pattern: "grpc.example.com",
		Rules:   []policy.Rule{{Transform: []policy.Transform{{Headers: map[string]string{"X-Key": "s3cret"}}}}},
	}}}, Limits{})
	service := &echoService{canceled: make(chan struct{})}
	client := newGRPC(t, r, service)
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(context.Background(), "x-key", "the sandbox's own"), time.Minute)
	defer cancel()

	t.Run("unary", func(t *testing.T) {
		for _, size := range []int{0, 10, 3 << 20} {
			body := bytes.Repeat([]byte("x"), size)
			var trailer metadata.MD
			got, err := client.UnaryCall(ctx, &testing_grpc.SimpleRequest{Payload: &testing_grpc.Payload{Body: body}}, grpc.Trailer(&trailer))
			if err != nil || !bytes.Equal(got.Payload.GetBody(), body) {
				t.Fatalf("%d bytes: %d, %v", size, len(got.GetPayload().GetBody()), err)
			}
			if v := trailer.Get("x-trailer"); len(v) != 1 || v[0] != "kept" {
				t.Errorf("the trailer is %v", trailer)
			}
		}
	})
	t.Run("status", func(t *testing.T) {
		const message = "not now: 50 % – später"
		for range 100 { // as a status without an answer is in the first headers, which must be the last
			var trailer metadata.MD
			_, err := client.UnaryCall(ctx, &testing_grpc.SimpleRequest{ResponseStatus: &testing_grpc.EchoStatus{Code: int32(codes.FailedPrecondition), Message: message}}, grpc.Trailer(&trailer))
			if s := status.Convert(err); s.Code() != codes.FailedPrecondition || s.Message() != message || len(trailer.Get("x-trailer")) != 1 {
				t.Fatalf("%v, trailer %v", err, trailer)
			}
		}
		if _, err := client.EmptyCall(ctx, &testing_grpc.Empty{}); status.Code(err) != codes.Unimplemented {
			t.Error(err)
		}
	})
	t.Run("both ways", func(t *testing.T) {
		stream, err := client.FullDuplexCall(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for i := range 100 { // each only after the one before was answered
			body := bytes.Repeat([]byte{byte(i)}, i*100)
			if err := stream.Send(&testing_grpc.StreamingOutputCallRequest{Payload: &testing_grpc.Payload{Body: body}}); err != nil {
				t.Fatal(err)
			}
			if got, err := stream.Recv(); err != nil || !bytes.Equal(got.Payload.GetBody(), body) {
				t.Fatalf("%d: %v", i, err)
			}
		}
		if err := stream.CloseSend(); err != nil {
			t.Fatal(err)
		}
		_, err = stream.Recv()
		if s := status.Convert(err); s.Code() != codes.Aborted || s.Message() != "at the end" || len(stream.Trailer().Get("x-trailer")) != 1 {
			t.Errorf("the end is %v, trailer %v", err, stream.Trailer())
		}
	})
	t.Run("canceled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(ctx)
		stream, err := client.FullDuplexCall(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.Send(&testing_grpc.StreamingOutputCallRequest{}); err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); err != nil {
			t.Fatal(err)
		}
		cancel()
		select {
		case <-service.canceled:
		case <-time.After(time.Minute):
			t.Error("the server does not hear of it")
		}
	})
	r.mustTell("a call", func(e Event) bool {
		return e.Allowed && e.Protocol == ProtocolHTTPS && e.Domain == "grpc.example.com" && e.Reason == reasonRule
	})
}
