"use strict";(()=>{try{document.documentElement.dataset.theme=localStorage.getItem("braidinfer.theme")??""}catch{document.documentElement.dataset.theme=""}})();
