// The model "loop": the whole run of the guest of the two loops, for every setting of its switches.
//
// An interpreter of the instructions that guest has, and of one decision: who can finish this? The
// pieces that the guest may try are written down here; the rest comes from the template. That all
// of it equals the recordings is held by a test on the Python side.
(() => {
  "use strict";
  const vmView = globalThis.vmView;
  const GUEST = "guest kernel", KERNEL = "host kernel", VMM = "host user";
  const SHOWN = ["EAX", "EBX", "ECX", "EDX", "IP"];
  const SERIAL = 0x3f8, STATUS = 0x3fd, PIC = 0x20, DOORBELL = 0xc010, ENDING = 0xf4, SCREEN = 0xb8000;
  const VECTOR = 0x20, LIMIT = 100;

  // Bytes, text and comment of what stays between the firmware and the doorbell.
  const PIECES = {
    out: [["ba f8 03", "mov dx, 0x3f8", "COM1"], ["b0 41", "mov al, 'A'", "a letter"],
      ["ee", "out dx, al", "one byte to a port"]],
    in: [["ba fd 03", "mov dx, 0x3fd", "the line status of COM1"],
      ["ec", "in al, dx", "somebody has to answer first"]],
    store: [["b8 00 b8", "mov ax, 0xb800", "a PC's text screen"],
      ["8e c0", "mov es, ax", "no RAM, but a device's memory"],
      ["b8 41 07", "mov ax, 0x0741", "an A, light grey on black"],
      ["26 a3 00 00", "mov [es:0], ax", "a store where no RAM is"]],
    load: [["b8 00 b8", "mov ax, 0xb800", "a PC's text screen"],
      ["8e c0", "mov es, ax", "no RAM, but a device's memory"],
      ["26 8b 1e 00 00", "mov bx, [es:0]", "a load; somebody has to answer first"]],
    cpuid: [["66 b8 00 00 00 40", "mov eax, 0x40000000", "the leaf of hypervisors"],
      ["0f a2", "cpuid", "under whom do I run?"]],
    rdmsr: [["66 b9 80 00 00 c0", "mov ecx, 0xc0000080", "EFER"],
      ["0f 32", "rdmsr", "a register of this model"]],
    vmmcall: [["66 b8 16 20 00 00", "mov eax, 0x2016", "a call that no hypervisor knows"],
      ["0f 01 d9", "vmmcall", "please"]],
    cr3: [["66 b8 00 30 00 00", "mov eax, 0x3000", "where a page table could be"],
      ["0f 22 d8", "mov cr3, eax", "a new address space"]],
  };
  const LABELS = [["out", "OUT to the serial port"], ["in", "IN from the serial port"],
    ["store", "a store where no RAM is (MMIO)"], ["load", "a load where no RAM is (MMIO)"],
    ["cpuid", "CPUID"], ["rdmsr", "RDMSR of EFER"], ["vmmcall", "VMMCALL, unknown number"],
    ["cr3", "MOV to CR3"]];
  const PLAYS = new Map([[SERIAL, "the serial port"], [STATUS, "the serial port"],
    [SCREEN, "the text screen"], [DOORBELL, "the virtio device"], [PIC, "the interrupt controller"]]);
  const WHY = {
    IO: "a port is no business of this kernel, there is no device behind it.",
    MMIO: "there is no RAM at this address, and no device of the kernel's.",
    HLT: "the guest waits for an interrupt, and nobody here can send it one.",
  };

  const hex = (value, digits = 1) => `0x${(value >>> 0).toString(16).padStart(digits, "0")}`;
  const sentence = (text, comment) => `${text}: ${comment}${comment.endsWith("?") ? "" : "."}`;
  const show = (value, size) => hex(value, 2 * size) +
    (size === 1 && value >= 0x20 && value < 0x7f ? ` '${String.fromCharCode(value)}'` : "");

  // ---- the processor -----------------------------------------------------------------------

  // What an instruction does: a new state at once, or what it wants of somebody else. `done` is the
  // state once that somebody is through with it, `read` where the answer goes.
  function execute(bytes, r) {
    const [a, b] = bytes;
    const word = (k) => bytes[k] | (bytes[k + 1] << 8);
    const wide = (k) => (word(k) | (word(k + 2) << 16)) >>> 0;
    const low = (old, mask, value) => ((old & ~mask) | value) >>> 0;
    const done = { ...r, IP: r.IP + bytes.length };
    const plain = (change) => ({ done: { ...done, ...change } });
    const out = (port, size) => ({ done, wants: "OUT", port, size, value: r.EAX & (size === 1 ? 0xff : 0xffff) });
    const dx = r.EDX & 0xffff;
    if (a === 0xba) return plain({ EDX: low(r.EDX, 0xffff, word(1)) });
    if (a === 0xb0) return plain({ EAX: low(r.EAX, 0xff, b) });
    if (a === 0xb8) return plain({ EAX: low(r.EAX, 0xffff, word(1)) });
    if (a === 0x66 && b === 0xb8) return plain({ EAX: wide(2) });
    if (a === 0x66 && b === 0xb9) return plain({ ECX: wide(2) });
    if (a === 0x31) return plain({ EAX: low(r.EAX, 0xffff, 0) });
    if (a === 0x8e) return plain({ ES: r.EAX & 0xffff });
    if (a === 0x0f && b === 0x22) return plain({});
    if (a === 0xcf) return { done: { ...r, IP: r.back } };
    if (a === 0xee) return out(dx, 1);
    if (a === 0xef) return out(dx, 2);
    if (a === 0xe6) return out(b, 1);
    if (a === 0xec) return { done, wants: "IN", port: dx, size: 1, read: (v) => ({ EAX: low(r.EAX, 0xff, v) }) };
    if (a === 0x26 && b === 0xa3) return { done, wants: "store", gpa: r.ES * 16 + word(2), size: 2, value: r.EAX & 0xffff };
    if (a === 0x26 && b === 0x8b) return { done, wants: "load", gpa: r.ES * 16 + word(3), size: 2,
      read: (v) => ({ EBX: low(r.EBX, 0xffff, v) }) };
    if (a === 0xf4) return { done, wants: "HLT" };
    if (a === 0x0f && b === 0xa2) return { done, wants: "CPUID" };
    if (a === 0x0f && b === 0x32) return { done, wants: "RDMSR" };
    if (a === 0x0f && b === 0x01) return { done, wants: "VMMCALL", number: r.EAX };
    throw new Error(`the model has no instruction ${hex(a, 2)}`);
  }

  // ---- who can finish it? ------------------------------------------------------------------

  // What the kernel does when it can finish this alone; null when it cannot.
  function finish({ wants, port, number }, { irqchip, ioeventfd }) {
    if (wants === "OUT" && port === PIC && irqchip) {
      return { text: `port ${hex(port)} leads to the interrupt controller in here. It takes the byte.` };
    }
    if (wants === "OUT" && port === DOORBELL && ioeventfd) {
      return { rang: 1, text: `a doorbell (ioeventfd) hangs at port ${hex(port)}; its counter goes up by 1.` };
    }
    if (wants === "HLT" && irqchip) {
      return { sleeps: true, text: "here is an interrupt controller that can wake this vCPU. Its thread " +
        "sleeps, inside KVM_RUN." };
    }
    if (wants === "CPUID") {
      return { change: { EAX: 0x40000001, EBX: 0x4b4d564b, ECX: 0x564b4d56, EDX: 0x4d },
        text: "the kernel answers, from the table it was given (KVM_SET_CPUID2)." };
    }
    if (wants === "RDMSR") {
      return { change: { EAX: 0, EDX: 0 }, text: "the kernel keeps this register, and answers 0." };
    }
    if (wants === "VMMCALL") {
      return { change: { EAX: -1000 >>> 0 },
        text: `the kernel knows no call ${hex(number)}, and answers -KVM_ENOSYS, -1000.` };
    }
    return null;
  }

  function exitOf({ wants, port, gpa, size, value }) {
    if (wants === "HLT") return { reason: "HLT", detail: "" };
    if (wants === "OUT") return { reason: "IO", detail: `OUT ${hex(port)} ← ${show(value, size)}` };
    if (wants === "IN") return { reason: "IO", detail: `IN ${hex(port)}, ${size} byte(s)` };
    return { reason: "MMIO", detail: wants === "store" ? `write GPA ${hex(gpa)} ← ${show(value, size)}`
      : `read ${size} byte(s) at GPA ${hex(gpa)}` };
  }

  // ---- the recording -----------------------------------------------------------------------

  // The listing with another piece in it, and the sentence for each of its lines.
  function assemble(template, piece) {
    const { code } = template.steps[0].state;
    const said = new Map(template.steps.filter((step) => step.event === "instruction")
      .map((step) => [step.state.line, step.text]));
    const first = template.steps.find((step) => step.event === "instruction").state.line;
    const ring = code.findIndex(([, bytes]) => bytes === "ba 10 c0");
    const keep = (from, to) => code.slice(from, to).map(([, bytes, text], k) => [bytes, text, said.get(from + k)]);
    const lines = [...keep(0, first),
      ...piece.map(([bytes, text, comment]) => [bytes, text, sentence(text, comment)]),
      ...keep(ring, code.length)];
    let at = parseInt(code[0][0], 16);
    const laid = lines.map(([bytes, text]) => {
      const line = [hex(at, 4), bytes, text];
      at += bytes.split(" ").length;
      return line;
    });
    return { code: laid, sentences: lines.map((line) => line[2]), first, tried: first + piece.length - 1 };
  }

  function run(template, settings) {
    const { code, sentences, first, tried } = assemble(template, PIECES[settings.tries]);
    const lineAt = new Map(code.map(([address], i) => [parseInt(address, 16), i]));
    const steps = [], counters = {};
    let line = -1, output = "", seen = null, start = 0, vector = false;
    let r = { ES: 0, back: 0, IP: parseInt(code[first][0], 16) };
    for (const [name, value] of template.steps[0].state.registers) if (name !== "IP") r[name] = parseInt(value, 16);
    const count = (name, by = 1) => { counters[name] = (counters[name] || 0) + by; };

    function note(where, event, text, crossing = null, exit = null) {
      const registers = SHOWN.map((name) => [name, hex(r[name], name === "IP" ? 4 : 8)]);
      const values = [...registers, ["output", output]];
      const changed = (seen || values).map(([name, old], i) => [name, old, values[i][1]])
        .filter(([, old, now]) => old !== now);
      seen = values;
      steps.push({ i: steps.length, where, event, text, changed,
        state: { crossing, registers, code, line, exit, output } });
    }

    function enter() {
      line = -1;
      note(KERNEL, "entry", `The kernel enters the guest at ${hex(r.IP, 4)}${vector
        ? `, with vector ${hex(VECTOR)}: the handler comes first.` : "."}`, [KERNEL, GUEST]);
    }

    // The VMM does what the device would have done; returns the sentence.
    function serve({ wants, port, gpa, size, value, read, done }) {
      const who = `The VMM plays ${PLAYS.get(gpa ?? port)}: it`;
      r = done;
      if (wants === "HLT") {
        vector = true;
        return `The VMM has an interrupt for it by now, hands down vector ${hex(VECTOR)}`;
      }
      if (read) {
        const answer = wants === "IN" ? 0x60 : 0x0720;
        r = { ...done, ...read(answer) };
        return `${who} answers ${show(answer, size)}`;
      }
      if (port === SERIAL) {
        output += String.fromCharCode(value);
        count("bytes on the serial port");
      }
      return `${who} takes ${show(value, size)}`;
    }

    note(VMM, "run", "The VMM calls KVM_RUN.");
    enter();
    while (steps.length < LIMIT) {
      if (vector) r = { ...r, back: r.IP, IP: parseInt(code[0][0], 16) };
      vector = false;
      line = lineAt.get(r.IP);
      const step = execute(code[line][1].split(" ").map((byte) => parseInt(byte, 16)), r);
      if (!step.wants) r = step.done;
      count("instructions");
      if (line === tried) start = steps.length;
      note(GUEST, "instruction", sentences[line]);
      if (!step.wants) continue;
      const inside = finish(step, settings);
      if (inside) {
        count("finished in the kernel");
        r = { ...step.done, ...inside.change };
        note(KERNEL, "handled", `VM exit: ${inside.text}`, [GUEST, KERNEL]);
        if (inside.sleeps) {
          note(VMM, "device", "Another thread of the VMM raises line 0 (KVM_IRQ_LINE).", [VMM, KERNEL]);
          vector = true;
        }
        enter();
        if (inside.rang) {
          note(VMM, "device", `Another thread of the VMM wakes up and reads the counter: ${inside.rang}. The ` +
            "vCPU has not waited for it.");
        }
        continue;
      }
      const exit = exitOf(step);
      count("exits to user space");
      count(`exits ${exit.reason}`);
      note(KERNEL, "exit", `VM exit: ${WHY[exit.reason]}`, [GUEST, KERNEL], exit);
      note(VMM, "return", `KVM_RUN returns, exit_reason = ${exit.reason}${exit.detail ? `: ${exit.detail}` : ""}.`,
        [KERNEL, VMM], exit);
      if (step.wants === "OUT" && step.port === ENDING) {
        note(VMM, "end", "The VMM takes this as the end, and calls KVM_RUN no more.");
        break;
      }
      const before = r;
      const text = serve(step);
      const after = r;
      r = before; // settled by the next entry only
      note(VMM, "device", `${text} and calls KVM_RUN.`, [VMM, KERNEL], exit);
      r = after;
      enter();
    }
    const provenance = { ...template.provenance, guest_sha256: null };
    const returns = counters["exits to user space"];
    return { trace: { ...template, provenance, steps, counters }, start,
      answers: { returns, exits: returns + (counters["finished in the kernel"] || 0) } };
  }

  vmView.models.loop = {
    inputs: { tries: { kind: "select", options: LABELS }, irqchip: { kind: "toggle" }, ioeventfd: { kind: "toggle" } },
    run,
  };
})();
