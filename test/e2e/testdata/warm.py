"""Answers each connection with what only this process knows."""
import os, random, socketserver

secret, answered, heap = random.random(), 0, os.urandom(20 << 20)


class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        global answered
        answered += 1
        self.wfile.write(f"python {secret} {answered} {len(heap)}\n".encode())


socketserver.TCPServer.allow_reuse_address = True
socketserver.TCPServer(("", 8000), Handler).serve_forever()
