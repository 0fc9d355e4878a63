'use strict';
// Keeps the page up to date. What has focus, is selected or scrolled stays: elements are changed in
// place, never replaced as a whole.
(() => {
  const live = document.getElementById('live');
  const table = document.querySelector('table');
  // The server says something at least every 10 s; twice that and more is a dead connection.
  const SILENCE = 25000;
  let source, silence, pause = 1000;

  const say = (state, words) => {
    document.documentElement.dataset.live = state;
    if (live.textContent !== words) live.textContent = words;
  };
  const clock = () => new Date().toISOString().slice(11, 19) + ' UTC';

  const become = (old, fresh) => {
    if (old.isEqualNode(fresh)) return;
    if (old.nodeType !== fresh.nodeType || old.nodeName !== fresh.nodeName) {
      old.replaceWith(fresh);
      return;
    }
    if (old.nodeType !== Node.ELEMENT_NODE) {
      old.data = fresh.data;
      return;
    }
    for (const { name } of [...old.attributes]) {
      if (!fresh.hasAttribute(name)) old.removeAttribute(name);
    }
    for (const { name, value } of fresh.attributes) {
      if (old.getAttribute(name) !== value) old.setAttribute(name, value);
    }
    const had = [...old.childNodes];
    const has = [...fresh.childNodes];
    has.forEach((node, nth) => {
      if (nth < had.length) become(had[nth], node);
      else old.append(node);
    });
    had.slice(has.length).forEach((node) => node.remove());
  };

  const arrange = (order) => {
    const focused = document.activeElement;
    const ids = new Set(order);
    for (const rows of [...table.tBodies]) {
      if (!ids.has(rows.id)) rows.remove();
    }
    order.forEach((id, nth) => {
      const rows = document.getElementById(id);
      const here = table.tBodies[nth];
      if (rows && rows !== here) table.insertBefore(rows, here || null);
    });
    if (focused !== document.activeElement && focused.isConnected) {
      focused.focus({ preventScroll: true });
    }
  };

  const update = ({ title, order, parts }) => {
    if (document.title !== title) document.title = title;
    for (const [id, html] of Object.entries(parts)) {
      const template = document.createElement('template');
      template.innerHTML = html;
      const fresh = template.content.firstElementChild;
      const old = document.getElementById(id);
      if (old) become(old, fresh);
      else table.append(fresh);
    }
    arrange(order);
  };

  const lost = (words) => {
    clearTimeout(silence);
    source.close();
    say('lost', words);
    setTimeout(listen, pause);
    pause = Math.min(pause * 2, 10000);
  };
  const heard = () => {
    pause = 1000;
    say('live', 'live');
    clearTimeout(silence);
    silence = setTimeout(() => lost(`connection lost at ${clock()}; trying again`), SILENCE);
  };

  const listen = () => {
    source = new EventSource('events');
    source.onmessage = ({ data }) => {
      update(JSON.parse(data));
      heard();
    };
    source.addEventListener('beat', heard);
    source.addEventListener('end', () => lost(`draining since ${clock()}; this is the last news`));
    source.onerror = () => {
      const told = document.documentElement.dataset.live === 'lost';
      lost(told ? live.textContent : `connection lost at ${clock()}; trying again`);
    };
  };
  listen();
})();
