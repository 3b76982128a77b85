"use strict";
(() => {
  const viewer = document.getElementById("viewer");
  const stage = document.getElementById("stage");
  const share = document.getElementById("share");
  const images = { teacher: document.getElementById("teacher-image"), student: document.getElementById("student-image") };
  const buttons = [...document.querySelectorAll(".pair button")];

  function move(percent) {
    share.value = Math.min(100, Math.max(0, percent));
    stage.style.setProperty("--share", `${share.value}%`);
    share.setAttribute("aria-valuetext", `${share.value} percent of the teacher's image`);
  }

  function follow(event) {
    const box = stage.getBoundingClientRect();
    move((100 * (event.clientX - box.left)) / box.width);
  }

  function show(button) {
    const pair = button.closest(".pair");
    const [teacher, student] = pair.querySelectorAll("img");
    for (const [image, source] of [[images.teacher, teacher], [images.student, student]]) {
      image.width = source.getAttribute("width");
      image.height = source.getAttribute("height");
      image.src = source.src;
      image.alt = source.alt;
    }
    for (const part of ["prompt", "facts"]) {
      viewer.querySelector(`.${part}`).textContent = pair.querySelector(`.${part}`).textContent;
    }
    for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
  }

  share.addEventListener("input", () => move(share.value));
  stage.addEventListener("pointerdown", (event) => {
    stage.setPointerCapture(event.pointerId);
    follow(event);
  });
  stage.addEventListener("pointermove", (event) => {
    if (stage.hasPointerCapture(event.pointerId)) follow(event);
  });
  for (const button of buttons) {
    button.hidden = false;
    button.addEventListener("click", () => {
      show(button);
      viewer.scrollIntoView({ block: "nearest" });
      share.focus({ preventScroll: true });
    });
  }
  show(buttons[0]);
  move(50);
  viewer.hidden = false;
})();
