"""The data plane: one process beside one model server.

The journey of a request, in the order in which to read it:

    net.downstream     bytes of a client        http1.request makes requests of them
    exchange           one request and its answer
    pipeline           moves it through the stages of `stages/`, in the order of `plane`:
      account          first in, last out: writes down what became of it   (telemetry)
      identify         who asks, and for what                              (llm, http1.forwarded)
      admit            who may run, and who waits                          (flow)
      pick             where it runs                                       (balance)
    net.connections    finds or makes a connection to the engine
    net.upstream       sends it, reads the answer                          (http1.response)
    net.downstream     passes the answer on as it comes

`http1 llm flow balance telemetry` are pure: numbers and bytes in, values out, no I/O, no clock.
`net` alone knows sockets and the event loop; `plane` wires the data plane once; `app` is the process
around it. `config` and `settings` are what an operator can say; `errors` is what the mesh can say to
a caller.
"""
