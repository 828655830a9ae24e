// Runs in the page before its own scripts and keeps a log of what a person does and sees: keys, socket messages, chunks
// given to the video element, pictures presented, receipts. All times are on the page's clock, in ms.
//
// It knows nothing of the page's own player: a chunk's place on the media timeline is read where it is appended.
{
  const log = { keys: [], events: [], sent: [], appended: [], pictures: [], receipts: [] };
  window.recorded = log;
  window.sockets = [];
  /** Each message's buffer -> the header in front of it. */
  const headers = new WeakMap();

  addEventListener("keydown", ({ key, shiftKey, timeStamp }) => log.keys.push({ key, shiftKey, when: timeStamp }), true);

  const readHeader = (buffer) => {
    const view = new DataView(buffer);
    const [shot, chunk, take, sequence, epoch, start] = [4, 8, 12, 16, 20, 24].map((at) => view.getUint32(at, true));
    return { flags: view.getUint8(1), numFrames: view.getUint16(2, true), shot, chunk, take, sequence, epoch, start };
  };

  window.WebSocket = class extends WebSocket {
    constructor(...given) {
      super(...given);
      window.sockets.push(this);
      const connection = window.sockets.length - 1;
      this.addEventListener("message", ({ data }) => {
        const when = performance.now();
        if (typeof data === "string") log.events.push({ when, connection, message: JSON.parse(data) });
        else headers.set(data, { ...readHeader(data), when, connection, bytes: data.byteLength });
      });
    }

    send(data) {
      log.sent.push({ when: performance.now(), message: JSON.parse(data) });
      super.send(data);
    }
  };

  const append = SourceBuffer.prototype.appendBuffer;
  SourceBuffer.prototype.appendBuffer = function appendBuffer(bytes) {
    const header = headers.get(bytes.buffer);
    if (header && !(header.flags & 3)) log.appended.push({ ...header, mediaStart: this.timestampOffset });
    append.call(this, bytes);
  };

  const pen = new OffscreenCanvas(320, 192).getContext("2d", { willReadFrequently: true });
  const barcodeOf = (video) => {
    pen.drawImage(video, 0, 0, 320, 192);
    return readBarcode(pen.getImageData(0, 0, 320, 192));
  };

  addEventListener("DOMContentLoaded", () => {
    const video = document.getElementById("video");
    if (video === null) return; // not the page
    const next = (_now, { presentationTime, expectedDisplayTime, mediaTime, presentedFrames }) => {
      const code = window.readsBarcodes ? barcodeOf(video) : null;
      log.pictures.push({ when: presentationTime, shown: expectedDisplayTime, mediaTime, presentedFrames, code });
      video.requestVideoFrameCallback(next);
    };
    video.requestVideoFrameCallback(next);
    const receipts = document.getElementById("receipts");
    new MutationObserver((changes) => {
      for (const node of changes.flatMap(({ addedNodes }) => [...addedNodes])) {
        log.receipts.push({ when: performance.now(), outcome: node.dataset.outcome, text: node.textContent });
      }
    }).observe(receipts, { childList: true });
  });
}
