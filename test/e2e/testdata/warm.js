// Answers each connection with what only this process knows.
const secret = Math.random()
let answered = 0
const heap = Array.from({ length: 200000 }, (_, i) => ({ i }))
require('net').createServer((c) => {
  c.end(`node ${secret} ${++answered} ${heap.length}\n`)
}).listen(8001)
